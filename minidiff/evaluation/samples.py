"""The images that are evaluated: those of an archive, or samples of a network."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minidiff.data.npz import read_npz
from minidiff.diffusion.model import Model
from minidiff.diffusion.preconditioning import as_model
from minidiff.diffusion.reverse import Tick, last_x_t, sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule
from minidiff.errors import MinidiffError
from minidiff.formats import networks
from minidiff.models.unet import UNet
from minidiff.sampling import inputs, outputs, setup
from minidiff.sampling.settings import accuracy_warning, default_steps
from minidiff.training import state
from minidiff.training.unet_run import UNetRun

MIN_IMAGES = 16  # the fewest images that are evaluated


@dataclass(frozen=True)
class EvaluatedImages:
    """Images to be evaluated.

    shape     (H, W, C)
    facts     where they come from, as figures.json holds it; "n" is their number
    generate  generate(tick) returns the images (n, H, W, C) uint8 and calls tick() `ticks` times
    classes   the class names of a class-conditional network, and the label of each image, (n,)
    model     the unguided model that samples them, with its schedule; None for images of an archive
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


def sampled(
    folder: Path,
    n: int,
    steps: int | None,
    sampler: str | None,
    guidance: float,
    raw: bool,
    seed: int,
    backend: str,
) -> EvaluatedImages:
    """n images sampled by the network of a run or a diffusers folder, as `minidiff sample` samples them.

    raw: with the weights of a run's last step in place of their moving average.
    Raises MinidiffError for settings that the folder does not support.
    """
    unet, schedule = setup.load_image_unet(folder, backend), networks.load_schedule(folder)
    chosen = networks.load_sampler(folder, sampler)
    steps = default_steps(schedule, chosen) if steps is None else steps
    warning = accuracy_warning(schedule, chosen, steps)  # raises for steps that the schedule does not have
    weights = _use_weights(unet, folder, raw)
    labels = inputs.class_labels(folder, unet, None, n)
    batches = inputs.batches(n if labels is None else len(labels), unet, labels)
    model = setup.guided_model(folder, unet, schedule, guidance)

    facts = {
        "of": str(folder), "n": sum(shape[0] for shape, _ in batches), "weights": weights, "sampler": chosen.name,
        "steps": steps, "guidance": guidance, "seed": seed,
    }  # fmt: skip
    return EvaluatedImages(
        shape=unet.image_shape,
        facts=facts,
        generate=partial(_generate, model, schedule, batches, steps, chosen, seed),
        ticks=steps * len(batches),
        classes=() if labels is None else networks.load_classes(folder),
        labels=labels,
        model=as_model(unet, schedule),
        schedule=schedule,
        warning=warning,
    )


def _generate(
    model: Model, schedule: AnySchedule, batches: list, steps: int, sampler: Sampler, seed: int, tick: Tick
) -> np.ndarray:
    """Images (n, H, W, C) uint8 of all batches (shape, labels), from the noise of the seed; tick() after every step."""
    rng, images = np.random.default_rng(seed), []
    for shape, cond in batches:
        trajectory = sample(model, schedule, shape, rng, steps, sampler, cond)
        images.append(outputs.finished(last_x_t(trajectory, tick)))
    return np.concatenate(images)


def _use_weights(unet: UNet, folder: Path, raw: bool) -> str:
    """Load a run's raw weights into its network if `raw`; returns which weights the network has, for the report."""
    if not raw and not state.state_file(folder).is_file():
        return "as stored"
    run = state.open_run(folder, UNetRun)
    if raw:
        unet.load_state_dict(run.unet.state_dict())
    return f"{'last' if raw else 'moving average'}, of step {run.step}"
