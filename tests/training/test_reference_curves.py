"""The reference curve of small-cpu: for which runs there is one, and what their loss plot shows of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minidiff.data.cifar10 import CLASSES
from minidiff.data.dataset import from_arrays
from minidiff.data.imaging import ReferenceCurve, load_image, save_loss_plot
from minidiff.diffusion.schedule import linear_schedule
from minidiff.models.default_configs import default_config
from minidiff.training import loop
from minidiff.training.config import TrainConfig
from minidiff.training.forecast.reference_curves import reference_curve
from minidiff.training.kinds.unet_run import UNetRun
from minidiff.training.kinds.vae_run import VAERun, default_vae
from minidiff.training.recipes import RECIPES, SCHEDULE

CHOICES = RECIPES["small-cpu"].choices


def run_of(width=32, classes=CLASSES, schedule=SCHEDULE, **changes):
    """A run of the recipe small-cpu on CIFAR-10, with changes."""
    config = TrainConfig("data", backend="numpy", classes=classes, **CHOICES | changes)
    network = default_config((32, 32, 3), width, len(classes) + 1)
    return UNetRun.build(Path("run"), config, network, schedule, rng=None)


def test_a_run_of_the_recipe_has_its_curve():
    """Whatever its seed, and its number of steps."""
    curve = reference_curve(run_of())
    assert curve.name == "small-cpu, reference" and len(curve.steps) == len(curve.losses) > 50
    assert curve.steps == sorted(curve.steps) and 0 < curve.steps[0] < curve.steps[-1] <= CHOICES["steps"]
    assert curve.losses[-1] == pytest.approx(0.107, abs=0.001)  # the end of the published run
    assert reference_curve(run_of(steps=300, seed=5)) == curve


@pytest.mark.parametrize(
    "changes",
    [{"width": 16}, {"batch_size": 32}, {"lr": 2e-3}, {"classes": ("a", "b")}, {"schedule": linear_schedule(1000)}],
    ids=lambda changes: next(iter(changes)),
)
def test_other_runs_have_none(changes):
    assert reference_curve(run_of(**changes)) is None


def test_an_autoencoder_has_none():
    config = TrainConfig("data", backend="numpy", classes=CLASSES, **CHOICES)
    assert reference_curve(VAERun.build(Path("run"), config, default_vae((32, 32, 3)), rng=None)) is None


def test_the_plot_shows_the_curve_and_where_the_run_is(tmp_path):
    """Dark dashes beyond the run's steps, and a mark that lies left or right of the middle as the run does."""
    reference, plots = ReferenceCurve("reference", [10, 500, 1000], [0.5, 0.2, 0.1]), {}
    for steps in (0, 100, 900):
        losses = [0.3] * (steps or 100)
        path = tmp_path / "loss.png"
        save_loss_plot(range(1, len(losses) + 1), losses, path, "A title", (), reference if steps else None)
        plots[steps] = load_image(path).astype(int)[150:500]  # without title, legend and labels of the axes
    red = {steps: np.abs(image - (0xB5, 0x48, 0x2F)).sum(-1) < 60 for steps, image in plots.items()}
    dashes = {steps: np.abs(image - (0x57, 0x53, 0x4E)).sum(-1)[:, 500:800] < 30 for steps, image in plots.items()}
    assert not dashes[0].any() and dashes[100].any() and dashes[900].any()
    mark = [np.flatnonzero(red[steps].any(0)).max() for steps in (100, 900)]
    assert mark[0] < 525 < mark[1] <= 1000


def test_training_gives_its_run_to_the_plot(tmp_path, monkeypatch):
    """save_progress asks for the curve of the run that it plots."""
    plotted = []
    monkeypatch.setattr(loop, "save_loss_plot", lambda *given: plotted.append(given))
    monkeypatch.setattr(loop, "save_image", lambda *given: None)
    monkeypatch.setattr(UNetRun, "sheet", lambda *given: None)
    (tmp_path / "metrics.csv").write_text("step,loss,grad_norm,lr\n1,0.5,1.0,0.001\n")
    dataset = from_arrays("noise", np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, int), CLASSES)
    for width, expected in ((32, "small-cpu, reference"), (16, None)):
        loop.save_progress(replace(run_of(width), folder=tmp_path), dataset, dataset)
        assert getattr(plotted[-1][-1], "name", None) == expected
