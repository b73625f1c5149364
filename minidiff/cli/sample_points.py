"""Sampling of points, for the command that samples (sample.py)."""

from pathlib import Path
from typing import Any

import numpy as np

from minidiff.data import open_dataset
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule
from minidiff.errors import MinidiffError
from minidiff.formats.folders import describe
from minidiff.formats.run_networks import load_run_mlp
from minidiff.sampling import inputs, outputs, setup
from minidiff.sampling.points import PointSampler
from minidiff.sampling.points_figure import points_figure
from minidiff.terminal import announce_compiling, with_progress_bar

POINTS = 2000  # samples by default


def check_no_image_options(run: Path, image_options: dict[str, Any]) -> None:
    """Raises MinidiffError if an option is given that goes with images only; names -> values, None: not given."""
    for option, value in image_options.items():
        if value is not None:
            raise MinidiffError(f"{describe(run)}; give no --{option}")


def sample_points(
    run: Path,
    n: int,
    name: str | None,
    guidance: float,
    settings: tuple[AnySchedule, Sampler, int],
    weights: setup.Choice,
    rng: Any,
    backend: str,
) -> tuple[np.ndarray, Any]:
    """n samples (n, 1, 1, D) float32 of a run on points, and a function that returns their figure.

    name     class of the samples; None: all, class after class
    settings schedule, sampler and number of steps
    """
    mlp, data = load_run_mlp(run, weights, backend)
    schedule, sampler, steps = settings
    labels = inputs.class_labels(run, mlp, name, n)
    model = setup.guided_model(run, mlp, schedule, guidance)
    rows = mlp.config.num_class_embeds
    net = PointSampler(model, schedule, None if rows is None else rows - 1, sampler, steps)
    announce_compiling(backend)
    shape = (n, *mlp.image_shape)
    trajectories = with_progress_bar("sampling", steps, lambda tick: net.trajectories(shape, rng, labels, tick))
    outputs.check_finite(trajectories[-1])
    return trajectories[-1], lambda: points_figure(net, open_dataset(data, split="test"), trajectories, labels)
