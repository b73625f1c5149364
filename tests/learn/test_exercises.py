"""Every exercise: its solution passes, its stub is blank, and each of its mistakes gets its own hint."""

import inspect

import numpy as np
import pytest
from own_process import run
from PIL import Image

from minidiff.learn.catalogue import CHAPTERS, EXERCISES
from minidiff.learn.check import check
from minidiff.learn.compare import leaves
from minidiff.learn.stub import stub

every = pytest.mark.parametrize("number", EXERCISES, ids=lambda number: f"{number}-{EXERCISES[number].title}")


def test_catalogue():
    assert len(EXERCISES) == 40
    assert len({exercise.title for exercise in EXERCISES.values()}) == len(EXERCISES)
    for number, chapter in CHAPTERS.items():
        assert {exercise.chapter for exercise in chapter.exercises} == {number}
        assert chapter.page.startswith(f"{number:02}_")


@every
@pytest.mark.parametrize("seed", [0, 1])
def test_a_solution_is_right(number, seed):
    exercise = EXERCISES[number]
    assert check(exercise, exercise.solution, seed).right


@every
def test_a_stub_is_blank_and_has_the_solutions_signature_and_docstring(number):
    exercise = EXERCISES[number]
    names = {}
    exec(compile(stub(number), "stub.py", "exec"), names)
    answer = names[exercise.solution.__name__]
    verdict = check(exercise, answer)
    assert not verdict.right and "still blank" in verdict.hint
    assert str(inspect.signature(answer)) == str(inspect.signature(exercise.solution))
    assert answer.__doc__ == exercise.solution.__doc__
    assert f"minidiff learn check {number}" in names["__doc__"] and exercise.title in names["__doc__"]


@every
@pytest.mark.parametrize("seed", [0, 1])
def test_a_mistake_gets_its_own_hint(number, seed):
    exercise = EXERCISES[number]
    hints = [" ".join(mistake.__doc__.split()) for mistake in exercise.mistakes]
    assert len(set(hints)) == len(hints) >= 3
    for mistake, hint in zip(exercise.mistakes, hints, strict=True):
        verdict = check(exercise, mistake, seed)
        assert (verdict.right, verdict.hint) == (False, hint)


@every
def test_arguments_and_results_can_be_compared(number):
    """Results are arrays, numbers and strings, and no value is NaN."""
    exercise = EXERCISES[number]
    for arguments in exercise.inputs(np.random.default_rng(0)):
        for leaf in leaves(exercise.solution(*arguments)).values():
            assert isinstance(leaf, np.ndarray | np.generic | bool | int | float | str)
            assert isinstance(leaf, str) or not np.isnan(leaf).any()


@every
def test_an_image_is_one(number):
    exercise = EXERCISES[number]
    if exercise.image:
        image = exercise.image(exercise.solution)
        assert isinstance(image, Image.Image) and min(image.size) >= 64


def test_checking_needs_numpy_alone():
    code = "import sys, minidiff.learn.check, minidiff.learn.catalogue; print(*sys.modules)"
    modules = {name.partition(".")[0] for name in run(code)[0].split()}
    assert "numpy" in modules
    assert not modules & set("PIL numba llvmlite safetensors matplotlib typer rich threadpoolctl torch".split())
