"""Reference curves: the measured loss of a recipe's own run, to be shown beside the loss of another run of it.

small-cpu.json, beside this file, was read from the published figure of that run by benchmarks/law/reference_curve.py.
"""

import json
from pathlib import Path

from minidiff.data.cifar10 import CLASSES
from minidiff.data.imaging import ReferenceCurve
from minidiff.formats.schedulers import schedule_to_config
from minidiff.training.kinds.unet_run import UNetRun
from minidiff.training.recipes import RECIPES
from minidiff.training.run import Run

MEASURED = ("small-cpu",)  # recipes with a curve, all on CIFAR-10
SHAPE = (32, 32, 3)  # of CIFAR-10


def on_cifar10(run: Run) -> bool:
    """Whether a run is class-conditional on CIFAR-10, by its images' shape and its classes."""
    return run.shape == SHAPE and run.config.classes == CLASSES


def reference_curve(run: Run) -> ReferenceCurve | None:
    """The curve of the recipe that a run follows on CIFAR-10; None for other runs, and recipes without a curve."""
    for name in MEASURED:
        if isinstance(run, UNetRun) and on_cifar10(run) and _follows(run, name):
            curve = json.loads(Path(__file__).with_name(f"{name}.json").read_text(encoding="utf-8"))
            return ReferenceCurve(f"{name}, reference", curve["steps"], curve["losses"])
    return None


def _follows(run: UNetRun, name: str) -> bool:
    """Whether network, schedule and settings are the recipe's; the number of steps may be another."""
    recipe = RECIPES[name]
    network = recipe.network(run.shape, len(run.config.classes) + 1)
    settings = {key: value for key, value in recipe.choices.items() if key != "steps"}
    same = all(getattr(run.config, key) == value for key, value in settings.items())
    same = same and run.unet.config == network
    return same and schedule_to_config(run.schedule) == schedule_to_config(recipe.schedule)
