"""What is evaluated: pictures that are there already, or a network that draws them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minidiff.data.npz import read_npz
from minidiff.diffusion.preconditioning import as_model
from minidiff.diffusion.reverse import sample
from minidiff.diffusion.schedule import AnySchedule
from minidiff.errors import MinidiffError
from minidiff.formats import networks
from minidiff.sampling import setup
from minidiff.training import state
from minidiff.training.unet_run import UNetRun

MIN_IMAGES = 16  # pictures; of fewer nothing can be said

Tick = Callable[[], object]


@dataclass(frozen=True)
class EvaluatedImages:
    """Pictures to be evaluated.

    shape    (H, W, C)
    facts    what to say of them beside every figure, "n" among it
    classes  the names of what was asked for, if anything was; labels (n,) says of each picture what
    ticks    how often draw(tick) calls tick(); it returns the pictures (n, H, W, C) uint8
    model    what draws them, without guidance, and its schedule; None: nobody knows
    """

    shape: tuple[int, int, int]
    facts: dict[str, Any]
    draw: Callable[[Tick], np.ndarray]
    ticks: int = 0
    classes: tuple[str, ...] = ()
    labels: np.ndarray | None = None
    model: Callable[..., Any] | None = None
    schedule: AnySchedule | None = None


def from_archive(path: Path) -> EvaluatedImages:
    """The pictures of a NumPy archive. Raises MinidiffError for what is none, and for too few.

    Colour ones that are grey throughout count as grey ones: that is what `evaluate.export` makes of those.
    """
    images = read_npz(path)
    if len(images) < MIN_IMAGES:
        raise MinidiffError(f"{path}: holds {len(images)} pictures; {MIN_IMAGES} are the least to say anything of")
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
    """The pictures that the network of a run or a folder of diffusers draws, as `minidiff sample` would.

    raw: with the weights of a run's last step, not their average. Raises MinidiffError for all that does not go.
    """
    unet, schedule = setup.load_image_unet(folder, backend), networks.load_schedule(folder)
    way = networks.load_sampler(folder, sampler)
    steps = setup.default_steps(schedule, way) if steps is None else steps
    setup.check_settings(schedule, way, steps)
    weights = "as stored"
    if raw or state.state_file(folder).is_file():
        run = state.open_run(folder, UNetRun)
        weights = f"{'last' if raw else 'moving average'}, of step {run.step}"
        if raw:
            unet.load_state_dict(run.unet.state_dict())
    labels = setup.class_labels(folder, unet, None, n)
    batches = setup.batches(n if labels is None else len(labels), unet, labels)
    plain, model = as_model(unet, schedule), setup.guided_model(folder, unet, schedule, guidance)

    def draw(tick: Tick) -> np.ndarray:
        rng, images = np.random.default_rng(seed), []
        for shape, cond in batches:
            x_t = np.empty(shape)
            for _, x_t, _ in sample(model, schedule, shape, rng, steps, way, cond):  # noqa: B007  the last one counts
                tick()
            images.append(setup.finished(x_t))
        return np.concatenate(images)

    facts = {
        "of": str(folder), "n": sum(shape[0] for shape, _ in batches), "weights": weights, "sampler": way.name,
        "steps": steps, "guidance": guidance, "seed": seed,
    }  # fmt: skip
    classes = () if labels is None else networks.load_classes(folder)
    return EvaluatedImages(unet.image_shape, facts, draw, steps * len(batches), classes, labels, plain, schedule)
