"""The faults of docs/course/broken_runs.py are those that the exercise of chapter 7 names."""

import importlib.util
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from minidiff.learn.chapters import training

SCRIPT = Path(__file__).parents[2] / "docs" / "course" / "broken_runs.py"
FIELDS = {
    training.LEARNING_RATE: "lr",
    training.NO_EMA: "averaged",
    training.FLIPS: "flipped_axis",
    training.SCALE: "zero_to_one",
    training.TIMESTEP: "first_timestep",
    training.SAME_BATCH: "same_batch",
}


@pytest.fixture(scope="module")
def broken_runs():
    spec = importlib.util.spec_from_file_location("broken_runs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_run_has_the_fault_of_its_letter_alone(broken_runs):
    healthy = asdict(broken_runs.HEALTHY)
    differing = {
        letter: [name for name, value in asdict(setup).items() if value != healthy[name]]
        for letter, setup in broken_runs.FAULTS.items()
    }
    assert differing == {letter: [FIELDS[fault]] for letter, fault in training.diagnose().items()}


@pytest.mark.slow
def test_faults_in_sampling_leave_the_loss_as_it_is_and_all_others_change_it(broken_runs, monkeypatch):
    """Three steps of each run, as the chapter's answers say."""
    monkeypatch.setattr(broken_runs, "STEPS", 3)
    monkeypatch.setattr(broken_runs, "COLUMNS", 1)
    healthy = broken_runs.trained(broken_runs.HEALTHY)
    samples = broken_runs.sample(broken_runs.HEALTHY, healthy)
    for letter, setup in broken_runs.FAULTS.items():
        run = broken_runs.trained(setup)
        in_sampling = training.diagnose()[letter] in (training.NO_EMA, training.TIMESTEP)
        assert np.array_equal(run.losses, healthy.losses) == in_sampling, letter
        assert not np.array_equal(broken_runs.sample(setup, run), samples), letter


def test_images_have_a_row_of_each_class(broken_runs):
    samples = np.linspace(-1, 1, 2 * broken_runs.COLUMNS)[:, None, None, None] * np.ones((1, 4, 4, 3))
    canvas = broken_runs.grid(samples)
    assert canvas.shape == (9, 5 * broken_runs.COLUMNS - 1, 4)
    assert (canvas[:4, :4, :3] == 0).all() and (canvas[-4:, -4:, :3] == 255).all()  # the first, the last
    assert (canvas[4] == 0).all()  # transparent
