"""Checking of an answer: its results are compared with the solution's, and what is wrong becomes a hint.

This needs NumPy alone; the images of right answers need Pillow. run.py guards it against endless loops and crashes.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidiff.errors import MinidiffError
from minidiff.learn.compare import copied, same
from minidiff.learn.exercise import Answer, Exercise
from minidiff.learn.hints import hint


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and if not, a hint: one or two sentences."""

    right: bool
    hint: str = ""


def check(exercise: Exercise, answer: Answer, seed: int = 0) -> Verdict:
    """Compare an answer with the exercise's solution, on the inputs that are made from a seed.

    The answer is called with copies of the inputs. If all its results are those of one of the exercise's typical
    mistakes, that mistake's docstring is the hint.
    Raises MinidiffError if it does not take the solution's arguments, and whatever the answer raises, but for
    NotImplementedError: that answer is blank.
    """
    name = exercise.solution.__name__
    inputs = exercise.inputs(np.random.default_rng(seed))
    _check_arguments(exercise, answer, inputs[0])
    results = []
    for arguments in inputs:
        given = copied(arguments)
        try:
            result = answer(*given)
        except NotImplementedError:
            return Verdict(False, f"{name} is still blank: write its body in place of `raise NotImplementedError`.")
        if result is None:
            return Verdict(False, f"{name} is still blank: it returns None, and should return what it computes.")
        if changed := _changed(exercise, given, arguments):
            return Verdict(False, f"{name} changes its argument {changed} in place: compute a new array instead.")
        results.append(copied(result))
    with np.errstate(all="ignore"):  # a mistake may divide by 0
        return _compare(exercise, inputs, results)


def _compare(exercise: Exercise, inputs: list[tuple[Any, ...]], results: list[Any]) -> Verdict:
    """The verdict on an answer's results, one for each input."""

    def results_of(function: Answer) -> list[Any]:
        return [function(*copied(arguments)) for arguments in inputs]

    def all_same(others: list[Any]) -> bool:
        return all(same(got, other, exercise.rtol) for got, other in zip(results, others, strict=True))

    wanted = results_of(exercise.solution)
    if all_same(wanted):
        return Verdict(True)
    for mistake in exercise.mistakes:
        if all_same(results_of(mistake)):
            return Verdict(False, " ".join((mistake.__doc__ or "").split()))
    return Verdict(False, hint(list(zip(results, wanted, strict=True)), exercise.rtol))


def _check_arguments(exercise: Exercise, answer: Answer, arguments: tuple[Any, ...]) -> None:
    """Raises MinidiffError unless the answer can be called with as many arguments as the solution."""
    try:
        inspect.signature(answer).bind(*arguments)
    except (TypeError, ValueError):  # it takes others, or is no function of Python
        names = ", ".join(inspect.signature(exercise.solution).parameters)
        name = exercise.solution.__name__
        raise MinidiffError(f"{name} is not a function of ({names}); write its first line again as it was") from None


def _changed(exercise: Exercise, given: tuple[Any, ...], arguments: tuple[Any, ...]) -> str:
    """The name of the first argument that a call has changed; "" if there is none."""
    names = inspect.signature(exercise.solution).parameters
    pairs = zip(names, given, arguments, strict=True)
    return next((name for name, after, before in pairs if not same(after, before, rtol=0)), "")
