"""Exercise of chapter 7: training."""

from typing import Any

import numpy as np

from minidiff.learn.exercise import Exercise

LEARNING_RATE = "learning rate too high"
NO_EMA = "no EMA"
FLIPS = "flips along the wrong axis"
SCALE = "images in [0, 1]"
TIMESTEP = "wrong timestep in sampling"
SAME_BATCH = "same batch at every step"


def diagnose() -> dict[str, str]:
    """The fault of each of the six runs of chapter 7, A to F.

    The faults, each of one run:

        "learning rate too high"      25 times that of the healthy run
        "no EMA"                      the samples are generated with the weights of the last step, not their average
        "flips along the wrong axis"  half of the training images are flipped, along axis 1 of (N, H, W, C)
        "images in [0, 1]"            the training images are divided by 255, not scaled to [-1, 1]
        "wrong timestep in sampling"  the sampler gives the network the first timestep, 999, at every step
        "same batch at every step"    the data order forgets the step: every batch is the first one

    Returns {"A": "one of these names", ..., "F": ...}.
    """
    return {"A": TIMESTEP, "B": SCALE, "C": NO_EMA, "D": FLIPS, "E": SAME_BATCH, "F": LEARNING_RATE}


def _exchanged(first: str, second: str) -> dict[str, str]:
    """The right answer but for two faults, each of which has the other's run."""
    other = {first: second, second: first}
    return {letter: other.get(fault, fault) for letter, fault in diagnose().items()}


def _ema_for_timestep() -> dict[str, str]:
    """Two runs share the healthy run's loss, so both were trained rightly and sampled wrongly. Which of the two
    leaves a different animal in each column, and which takes every state for pure noise, of which only a mean is known?
    """
    return _exchanged(NO_EMA, TIMESTEP)


def _scale_for_batch() -> dict[str, str]:
    """Two runs have a lower loss than the healthy one. Which is far lower after 50 steps, before anything could be
    memorised, and which falls further and further? And what does a value of 0 look like, shown as [-1, 1]?
    """
    return _exchanged(SCALE, SAME_BATCH)


def _rate_for_ema() -> dict[str, str]:
    """The learning rate changes the loss; the EMA is computed beside the training and cannot change it."""
    return _exchanged(LEARNING_RATE, NO_EMA)


def _rate_for_flips() -> dict[str, str]:
    """Two runs have a higher loss. One learns more kinds of images than it should: look where the pullovers are; the
    other hardly learns, and its loss stays high. Axis 1 of (N, H, W, C) is the height.
    """
    return _exchanged(LEARNING_RATE, FLIPS)


def _rate_for_timestep() -> dict[str, str]:
    """Both runs are blurred, but only one was trained badly: compare their losses with the healthy run's."""
    return _exchanged(LEARNING_RATE, TIMESTEP)


def _no_arguments(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    return [()]


EXERCISES = (
    Exercise(
        "Six broken runs",
        7,
        diagnose,
        _no_arguments,
        (_ema_for_timestep, _scale_for_batch, _rate_for_ema, _rate_for_flips, _rate_for_timestep),
    ),
)
