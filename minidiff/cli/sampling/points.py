"""Sampling of points, for the command that samples (sample.py)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from minidiff.data import open_dataset
from minidiff.engine.rng import Rng
from minidiff.errors import MinidiffError
from minidiff.formats.folders import describe
from minidiff.formats.pipeline import PointsPipeline
from minidiff.sampling import inputs, outputs
from minidiff.sampling.dry_run import compile_for_sampling
from minidiff.sampling.points import PointSampler
from minidiff.sampling.points_figure import points_figure
from minidiff.sampling.settings import guided_model
from minidiff.terminal import with_progress_bar

NUM_POINTS = 2000  # samples by default


def check_no_image_options(run: Path, image_options: dict[str, Any]) -> None:
    """Raises MinidiffError if an option of a run on points is given that is for images; name -> value, or None."""
    for option, value in image_options.items():
        if value is not None:
            raise MinidiffError(f"{describe(run, 'points')}; give no --{option}")


def sample_points(
    pipeline: PointsPipeline, n: int, name: str | None, guidance: float, steps: int, rng: Rng
) -> tuple[np.ndarray, Callable[[], Image]]:
    """n samples (n, 1, 1, D) float32 of a run on points, and a function that returns their figure.

    name: class of the samples; None: all, class after class
    """
    labels, model = inputs.class_labels(pipeline, name, n), guided_model(pipeline, guidance)
    null = None if pipeline.num_class_embeds is None else pipeline.num_class_embeds - 1
    sampler = PointSampler(model, pipeline.schedule, null, pipeline.sampler, steps)
    compile_for_sampling(pipeline, n)
    shape = (n, *pipeline.image_shape)
    trajectories = with_progress_bar("sampling", steps, lambda tick: sampler.trajectories(shape, rng, labels, tick))
    outputs.check_finite(trajectories[-1])
    dataset = open_dataset(pipeline.data, split="test")
    return trajectories[-1], lambda: points_figure(sampler, dataset, trajectories, labels)
