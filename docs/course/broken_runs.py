"""Seven trainings of one small network: a healthy one, and six with one fault each, for docs/course/07_training.md.

    python docs/course/broken_runs.py

trains all of them on one thread, and writes docs/images/course-broken-healthy.png and course-broken-A.png to -F.png:
samples, and the training loss beside them. The same weights, batches, timesteps and noise each time, so that a run
differs from the healthy one by its fault alone. This file names the faults: read it after the exercise.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numba
import numpy as np
from threadpoolctl import threadpool_limits

import minidiff as md
from minidiff.data.batches import batch
from minidiff.data.cats_dogs import cats_dogs
from minidiff.data.dataset import from_arrays
from minidiff.data.imaging import to_uint8

HERE = Path(__file__).parent
SCHEDULE = md.cosine_schedule(prediction_type="sample")  # the network predicts x0
IMAGES, STEPS, BATCH, WARMUP, WIDTH = 2000, 400, 16, 50, 16
COLUMNS = 6  # samples of each class


@dataclass(frozen=True)
class Setup:
    """What the runs differ in."""

    lr: float = 4e-3
    averaged: bool = True  # samples are generated with the moving average of the weights
    flipped_axis: int | None = None  # of a batch (N, H, W, C), along which half of the images are flipped
    same_batch: bool = False  # every step gets the batch of step 1
    zero_to_one: bool = False  # the images are divided by 255, not scaled to [-1, 1]
    first_timestep: bool = False  # the sampler gives the network the first timestep, T - 1, at every step


HEALTHY = Setup()
FAULTS = {
    "A": Setup(first_timestep=True),
    "B": Setup(zero_to_one=True),
    "C": Setup(averaged=False),
    "D": Setup(flipped_axis=1),
    "E": Setup(same_batch=True),
    "F": Setup(lr=0.1),
}


class Run(NamedTuple):
    """A trained network with its optimiser, which holds the EMA; losses (steps,) and quarters (steps, 4)."""

    unet: Any
    optimizer: md.AdamW
    losses: np.ndarray
    quarters: np.ndarray


@cache
def dataset():
    """The images that all runs share: cats and dogs at half the size, 16 x 16."""
    drawn = cats_dogs(IMAGES)
    images = drawn.take(np.arange(IMAGES))
    reduced = images.reshape(IMAGES, 16, 2, 16, 2, 3).mean((2, 4))
    return from_arrays("cats_dogs", np.rint(reduced).astype(np.uint8), drawn.labels, drawn.classes, mirrors=False)


def batch_of(setup, step):
    """x0 (BATCH, H, W, C) and labels (BATCH,) of a step."""
    x0, labels = batch(dataset(), 1 if setup.same_batch else step, BATCH, seed=0, flip=False)
    if setup.flipped_axis is not None:
        flipped = np.random.default_rng([1, step]).integers(2, size=(BATCH, 1, 1, 1))
        x0 = np.where(flipped, np.flip(x0, setup.flipped_axis), x0)
    return (x0 + 1) / 2 if setup.zero_to_one else x0, labels


def trained(setup):
    """The Run of a setup. Faults in sampling do not change it, so such runs share one."""
    return train(replace(setup, averaged=True, first_timestep=False))


@cache
def train(setup):
    """The Run of a setup that samples without fault."""
    unet = md.UNet(md.default_config(dataset().shape, WIDTH, num_class_embeds=2), np.random.default_rng(0))
    optimizer = md.AdamW(unet.parameters(), setup.lr, betas=(0.9, 0.99), weight_decay=0, clip=1.0, ema=0.98)
    losses, quarters = [], []
    for step in range(1, STEPS + 1):
        optimizer.lr = setup.lr * min(1, step / WARMUP)
        x0, labels = batch_of(setup, step)
        stats = md.train_step(unet, SCHEDULE, optimizer, x0, np.random.default_rng([0, step]), labels)
        losses.append(stats.loss)
        quarters.append([np.nan if loss is None else loss for loss in stats.quarter_losses])
    return Run(unet, optimizer, np.array(losses), np.array(quarters))


def sample(setup, run):
    """COLUMNS cats, then as many dogs, from the same noise: (2 COLUMNS, H, W, C) float."""
    shape = dataset().shape
    noise = np.random.default_rng(1).standard_normal((COLUMNS, *shape), dtype=np.float32)
    labels = np.repeat([0, 1], COLUMNS)
    model = partial(_at_first_timestep, run.unet) if setup.first_timestep else run.unet
    with run.optimizer.averaged() if setup.averaged else nullcontext():
        *_, (_, x_t, _) = md.sample(
            model, SCHEDULE, (len(labels), *shape), np.random.default_rng(2), steps=50, sampler="ddim", cond=labels,
            x_T=np.concatenate([noise, noise]),
        )  # fmt: skip
    return x_t


def _at_first_timestep(unet, x_t, t, cond):
    return unet(x_t, np.full_like(t, len(SCHEDULE) - 1), cond=cond)


def grid(samples, gap=1):
    """The samples in two rows, uint8 RGBA, transparent between them."""
    H, W = samples.shape[1:3]
    canvas = np.zeros((2 * (H + gap) - gap, COLUMNS * (W + gap) - gap, 4), np.uint8)
    for i, image in enumerate(to_uint8(samples)):
        top, left = i // COLUMNS * (H + gap), i % COLUMNS * (W + gap)
        canvas[top : top + H, left : left + W] = np.dstack([image, np.full((H, W), 255, np.uint8)])
    return canvas


def moving_average(losses, window=40):
    """The mean of the `window` losses around each step, at the ends of those that are there."""
    weight = np.ones(window)
    return np.convolve(losses, weight, "same") / np.convolve(np.ones(len(losses)), weight, "same")


def figure(title, samples, curves):
    """Samples on the left, on the right curves {label: (losses, colour, line width)}."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 2.7), width_ratios=(1.9, 1), layout="constrained")
    left.imshow(grid(samples), interpolation="nearest")
    size = samples.shape[1] + 1
    left.set_xticks([size * (i + 0.5) for i in range(COLUMNS)], [f"noise {i + 1}" for i in range(COLUMNS)])
    left.set_yticks([size * 0.5, size * 1.5], ["cat", "dog"])
    left.tick_params(length=0)
    left.spines[:].set_visible(False)
    left.set_title(title)
    for label, (losses, colour, width) in curves.items():
        right.plot(moving_average(losses), color=colour, linewidth=width, label=label)
    right.set(xlabel="step", ylabel="loss", yscale="log")
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter(lambda y, position: f"{y:g}" if f"{y:e}"[0] in "25" else "")
    right.legend(fontsize=8, ncols=len(curves) // 2, loc="upper right", columnspacing=1)
    return fig


def save(fig, name):
    """Write docs/images/course-broken-NAME.png."""
    fig.savefig(HERE.parent / "images" / f"course-broken-{name}.png", dpi=130, transparent=True)
    plt.close(fig)


def report(name, run):
    """Print the mean loss of the last 100 steps, and of each quarter of the noise levels."""
    quarters = " ".join(f"{loss:.4f}" for loss in np.nanmean(run.quarters[-100:], 0))
    print(f"{name:8} loss {run.losses[-100:].mean():.4f}, by quarter {quarters}", flush=True)


def main():
    """Train all runs and write their images."""
    numba.set_num_threads(1)
    threadpool_limits(1)
    plt.style.use(HERE / "course.mplstyle")
    healthy = trained(HEALTHY)
    report("healthy", healthy)
    names = ("least noise", "2nd quarter", "3rd quarter", "most noise")
    colours = ("#6d8f5b", "#c28426", "#b5482f", "#5b6f8f")
    filled = np.where(np.isnan(healthy.quarters), np.nanmean(healthy.quarters, 0), healthy.quarters)  # (steps, 4)
    curves = {name: (*curve, 1.5) for name, *curve in zip(names, filled.T, colours, strict=True)}
    save(figure("healthy run", sample(HEALTHY, healthy), curves), "healthy")
    for letter, setup in FAULTS.items():
        run = trained(setup)
        report(letter, run)
        curves = {"healthy run": (healthy.losses, "#a0a0a0", 5), f"run {letter}": (run.losses, "#b5482f", 1.5)}
        save(figure(f"run {letter}", sample(setup, run), curves), letter)


if __name__ == "__main__":
    main()
