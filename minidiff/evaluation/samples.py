"""The images that are evaluated: those of an archive, or samples of a network."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from minidiff.data.npz import read_npz
from minidiff.diffusion.bound import DDPM
from minidiff.diffusion.model import Model, as_model
from minidiff.diffusion.reverse import Tick, last_x_t, sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule
from minidiff.errors import MinidiffError
from minidiff.formats.pipeline import Pipeline
from minidiff.sampling import inputs, outputs
from minidiff.sampling.settings import accuracy_warning, guided_model

MIN_IMAGES = 16  # the fewest images that are evaluated


@dataclass(frozen=True)
class EvaluatedImages:
    """Images to be evaluated.

    shape     (H, W, C)
    facts     where they come from, as figures.json holds it; "n" is their number
    generate  generate(tick) returns the images (n, H, W, C) uint8, shared out over the ranks, and calls tick() `ticks`
              times
    classes   the class names of a class-conditional network, and the label of each image, (n,)
    model     the unguided model that samples them, with its schedule; None for images of an archive
    bound     the variance of the model's bound on bits per dimension
    warning   what to tell of the sampling settings, or ""
    """

    shape: tuple[int, int, int]
    facts: dict[str, Any]
    generate: Callable[[Tick], np.ndarray]
    ticks: int = 0
    classes: tuple[str, ...] = ()
    labels: np.ndarray | None = None
    model: Model | None = None
    schedule: AnySchedule | None = None
    bound: Sampler = DDPM
    warning: str = ""


def from_archive(path: Path) -> EvaluatedImages:
    """The images of a NumPy archive. Raises MinidiffError if it cannot be read or holds fewer than MIN_IMAGES.

    RGB images whose channels are all equal are taken as greyscale, which `report.export_images` writes so.
    """
    images = read_npz(path)
    if len(images) < MIN_IMAGES:
        raise MinidiffError(f"{path}: holds {len(images)} images; evaluation needs at least {MIN_IMAGES}")
    if (images == images[..., :1]).all():
        images = images[..., :1].copy()
    return EvaluatedImages(images.shape[1:], {"of": str(path), "n": len(images)}, lambda tick: images)


def sampled(pipeline: Pipeline, n: int, steps: int, guidance: float, weights: str, seed: int) -> EvaluatedImages:
    """n images sampled by a pipeline that takes no prompts, as `minidiff sample` samples them.

    weights: which of a run's weights it has, in words, for the report (`weights_of`).
    Raises MinidiffError for settings that the pipeline does not support.
    """
    schedule = pipeline.schedule
    labels = inputs.class_labels(pipeline, None, n)
    batches = inputs.batches(n, pipeline.image_shape, labels)
    model = guided_model(pipeline, guidance)

    weights = "as stored" if pipeline.step is None else f"{weights}, of step {pipeline.step}"
    facts = {
        "of": str(pipeline.folder), "n": n, "weights": weights, "sampler": name_of(pipeline.sampler),
        "steps": steps, "guidance": guidance, "seed": seed,
    }  # fmt: skip
    return EvaluatedImages(
        shape=pipeline.image_shape,
        facts=facts,
        generate=partial(_generate, pipeline, model, batches, steps, seed),
        ticks=steps * inputs.num_of_this_rank(len(batches)),
        classes=pipeline.classes,
        labels=labels,
        model=as_model(pipeline.unet, schedule),
        schedule=schedule,
        bound=replace(DDPM, variance="learned_range") if pipeline.learned_variance else DDPM,
        warning=accuracy_warning(pipeline, steps),
    )


def _generate(pipeline: Pipeline, model: Model, batches: list, steps: int, seed: int, tick: Tick) -> np.ndarray:
    """Images (n, H, W, C) uint8 of all batches (shape, labels), from the noise of the seed, by all ranks.

    tick() is called after every step of this one.
    """
    images = []
    for shape, cond, rng in inputs.of_this_rank(batches, repeat(np.random.default_rng(seed)), pipeline, steps):
        trajectory = sample(model, pipeline.schedule, shape, rng, steps, pipeline.sampler, cond)
        images.append(outputs.finished(last_x_t(trajectory, tick)))
    return inputs.of_all_ranks(images, pipeline.image_shape)


def name_of(sampler: Sampler) -> str:
    """The sampler's name, for the report, and whether it has Karras' noise levels."""
    return f"{sampler.name} (karras)" if sampler.karras else sampler.name


def weights_of(raw: bool, ema: float | None) -> str:
    """Which of a run's weights --raw and --ema choose, in words."""
    return "last" if raw else "moving average" if ema is None else f"moving average of half-life {ema:g}"
