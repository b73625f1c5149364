"""Training: one step, many steps, and the choices that make a run.

Randomness goes by step, not by state: step k draws t, eps and dropout from default_rng([seed, k]), and its
batch follows from (seed, k) too. So a resumed run is the very same run.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from minidiff.diffusion.loss import min_snr_weight, training_loss
from minidiff.diffusion.schedule import AnySchedule, cosine_schedule
from minidiff.engine.nn import Parameter
from minidiff.engine.optim import AdamW, learning_rate
from minidiff.errors import MinidiffError

SCHEDULE = cosine_schedule(1000, prediction_type="v_prediction")  # of every run that is not told otherwise


@dataclass(frozen=True)
class TrainConfig:
    """What a run is started with, and what its state file remembers.

    steps         the total, not "more"
    lr            the peak; it rises over `warmup` steps and falls along half a cosine over the second half
    ema           decay of the moving average of the weights, which is what samples are drawn from
    flip          mirror pictures at random
    seed          of everything: weights, order, noise
    classes       what it learns to be asked for, by name; none: it never sees a label
    min_snr       the gamma of min-SNR weighting, which then weighs the loss
    label_dropout share of pictures whose label it does not see, so that it also learns to do without (guidance.py)
    Raises MinidiffError that names the first value that makes no sense.
    """

    data: str
    size: int | None = None
    steps: int = 2000
    batch_size: int = 32
    lr: float = 1e-3
    warmup: int = 50
    ema: float = 0.995
    flip: bool = True
    seed: int = 0
    backend: str = "numba"
    threads: int = 1
    classes: tuple[str, ...] = ()
    label_dropout: float = 0.1
    min_snr: float | None = None

    def __post_init__(self):
        for name, low, high in (
            ("size", 1, 4096),
            ("steps", 1, 10**9),
            ("batch_size", 1, 65536),
            ("warmup", 0, 10**9),
            ("seed", 0, 2**63 - 1),
            ("threads", 1, 4096),
        ):
            value = getattr(self, name)
            if name == "size" and value is None:
                continue
            if type(value) is not int or not low <= value <= high:
                raise MinidiffError(f"{name} = {value!r}: give a whole number from {low} to {high}")
        for name, low, high in (("lr", 0.0, 1.0), ("ema", 0.0, 1.0), ("label_dropout", 0.0, 1.0)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not low < value < high:
                raise MinidiffError(f"{name} = {value!r}: give a number between {low:g} and {high:g}")
        if self.min_snr is not None and not (type(self.min_snr) in (int, float) and 0 < self.min_snr <= 1e6):
            raise MinidiffError(f"min_snr = {self.min_snr!r}: give a number above 0, such as 5")
        names = self.classes
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
            raise MinidiffError(f"classes = {names!r:.80}: give a list of names")
        object.__setattr__(self, "classes", tuple(names))  # JSON has lists

    def rate(self, step: int) -> float:
        """The learning rate at a step (1 ... steps)."""
        return learning_rate(self.lr, step, self.steps, self.warmup, decay_from=0.5)


def make_optimizer(params: list[Parameter], config: TrainConfig) -> AdamW:
    """AdamW as every run has it: a short memory (beta2 = 0.99), no weight decay, gradients clipped to a norm of 1."""
    return AdamW(params, config.lr, betas=(0.9, 0.99), weight_decay=0.0, clip=1.0, ema=config.ema)


# Choices that older runs do not name; the defaults are what they did.
LATER = {"classes", "label_dropout", "min_snr"}


def config_from_dict(values: Any) -> TrainConfig:
    """The inverse of asdict, for what was read from a file. Raises MinidiffError if it is not one."""
    names = {field.name for field in fields(TrainConfig)}
    whole = isinstance(values, dict) and names - LATER <= set(values) <= names
    if not whole or not all(isinstance(values[name], str) for name in ("data", "backend")):
        raise MinidiffError("the run's configuration is damaged: start a new run")
    return TrainConfig(**values)


class StepStats:
    """What a step tells of itself: step (from 1), loss, grad_norm before clipping. Read when asked, not before."""

    def __init__(self, step: int, loss: Any, grad_norm: Any):
        self.step, self._loss, self._grad_norm = step, loss, grad_norm

    @property
    def loss(self) -> float:
        return float(self._loss.numpy())

    @property
    def grad_norm(self) -> float:
        return float(self._grad_norm)


def train_step(
    model: Callable[..., Any],
    schedule: AnySchedule,
    optimizer: AdamW,
    x0: np.ndarray,
    rng: Any,
    cond: Any = None,
    min_snr: float | None = None,
) -> StepStats:
    """One step of DDPM algorithm 1: draw t and eps, take a gradient step on the loss.

    x0 float32 (N, H, W, C) in [-1, 1]; cond as the model takes it. rng draws t, then eps, then dropout.
    With min_snr, the loss is weighted with that gamma (`min_snr_weight`).
    """
    t = schedule.draw(rng, len(x0))  # (N,)
    eps = rng.standard_normal(x0.shape, dtype=np.float32)  # (N, H, W, C)
    optimizer.zero_grad()
    weight = None if min_snr is None else min_snr_weight(schedule, t, min_snr)
    loss = training_loss(model, schedule, x0, t, eps, cond, rng, weight)
    loss.backward()
    return StepStats(optimizer.step_count + 1, loss, optimizer.step())


def train(
    model: Callable[..., Any],
    schedule: AnySchedule,
    optimizer: AdamW,
    batches: Iterator[tuple[np.ndarray, Any]],
    config: TrainConfig,
) -> Iterator[StepStats]:
    """Every step that is left until config.steps, one StepStats each. A progress bar and a log are loops over it.

    batches yields (x0, cond) for the steps from optimizer.step_count + 1 on.
    Raises MinidiffError, with the step, if the loss or the gradient is no longer a finite number.
    """
    for x0, cond in batches:
        step = optimizer.step_count + 1
        optimizer.lr = config.rate(step)
        rng = np.random.default_rng([config.seed, step])
        stats = train_step(model, schedule, optimizer, x0, rng, cond, config.min_snr)
        if not (math.isfinite(stats.loss) and math.isfinite(stats.grad_norm)):
            raise MinidiffError(
                f"step {step}: the loss is {stats.loss}, the gradient's norm {stats.grad_norm}; try a smaller --lr"
            )
        yield stats
