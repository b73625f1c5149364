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
from minidiff.runs import checkpoint, drawing, state
from minidiff.runs.unet_run import UNetRun

LEAST = 16  # pictures; of fewer nothing can be said

Tick = Callable[[], object]


@dataclass(frozen=True)
class Subject:
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


def given(path: Path) -> Subject:
    """The pictures of a NumPy archive. Raises MinidiffError for what is none, and for too few.

    Colour ones that are grey throughout count as grey ones: that is what `evaluate.export` makes of those.
    """
    images = read_npz(path)
    if len(images) < LEAST:
        raise MinidiffError(f"{path}: holds {len(images)} pictures; {LEAST} are the least to say anything of")
    if (images == images[..., :1]).all():
        images = images[..., :1].copy()
    return Subject(images.shape[1:], {"of": str(path), "n": len(images)}, lambda tick: images)


def drawn(
    folder: Path,
    n: int,
    steps: int | None,
    sampler: str | None,
    guidance: float,
    raw: bool,
    seed: int,
    backend: str,
) -> Subject:
    """The pictures that the network of a run or a folder of diffusers draws, as `minidiff sample` would.

    raw: with the weights of a run's last step, not their average. Raises MinidiffError for all that does not go.
    """
    unet, schedule = drawing.drawable(folder, backend), checkpoint.load_schedule(folder)
    way = checkpoint.load_sampler(folder, sampler)
    steps = drawing.usual_steps(schedule, way) if steps is None else steps
    drawing.check_walk(schedule, way, steps)
    weights = "as stored"
    if raw or state.state_file(folder).is_file():
        run = state.open_run(folder, UNetRun)
        weights = f"{'last' if raw else 'moving average'}, of step {run.step}"
        if raw:
            unet.load_state_dict(run.unet.state_dict())
    labels = drawing.asked(folder, unet, None, n)
    batches = drawing.batches(n if labels is None else len(labels), unet, labels)
    plain, model = as_model(unet, schedule), drawing.insisting(folder, unet, schedule, guidance)

    def draw(tick: Tick) -> np.ndarray:
        rng, images = np.random.default_rng(seed), []
        for shape, cond in batches:
            x_t = np.empty(shape)
            for _, x_t, _ in sample(model, schedule, shape, rng, steps, way, cond):  # noqa: B007  the last one counts
                tick()
            images.append(drawing.finished(x_t))
        return np.concatenate(images)

    facts = {
        "of": str(folder), "n": sum(shape[0] for shape, _ in batches), "weights": weights, "sampler": way.name,
        "steps": steps, "guidance": guidance, "seed": seed,
    }  # fmt: skip
    classes = () if labels is None else checkpoint.load_classes(folder)
    return Subject(unet.picture_shape, facts, draw, steps * len(batches), classes, labels, plain, schedule)
