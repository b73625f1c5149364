"""Training steps: one, and many.

Randomness goes by step, not by state: step k draws t, eps and dropout from default_rng([seed, k]), and its
batch follows from (seed, k) too. So a resumed run is the very same run.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from minidiff.diffusion.loss import min_snr_weight, training_loss
from minidiff.diffusion.schedule import AnySchedule
from minidiff.engine.nn import Parameter
from minidiff.engine.optim import AdamW
from minidiff.engine.tensor import Tensor
from minidiff.errors import MinidiffError
from minidiff.training.config import TrainConfig

MOST_SKIPPED = 10  # steps in a row; the weights are lost for good, or the rate is far too high


def make_optimizer(params: list[Parameter], config: TrainConfig) -> AdamW:
    """AdamW as every run has it: a short memory (beta2), no weight decay, gradients clipped to a norm of 1."""
    return AdamW(params, config.lr, betas=(0.9, config.beta2), weight_decay=0.0, clip=1.0, ema=config.ema)


class StepStats:
    """What a step tells of itself: step (from 1), loss, grad_norm before clipping.

    losses: a function that gives a scalar, one for each equal part of the batch; the loss is their mean. So grad_norm.
    A GPU is waited for when they are called, not before.
    """

    def __init__(self, step: int, losses: Sequence[Callable], grad_norm: Callable):
        self.step, self._losses, self._grad_norm = step, losses, grad_norm

    @property
    def loss(self) -> float:
        return sum(float(loss()) for loss in self._losses) / len(self._losses)

    @property
    def grad_norm(self) -> float:
        return float(self._grad_norm())


def train_step(
    model: Callable[..., Any],
    schedule: AnySchedule,
    optimizer: AdamW,
    x0: np.ndarray,
    rng: Any,
    cond: Any = None,
    min_snr: float | None = None,
    accumulate: int = 1,
) -> StepStats:
    """One step of DDPM algorithm 1: draw t and eps, take a gradient step on the loss.

    x0 float32 (N, H, W, C) in [-1, 1]; cond as the model takes it. rng draws t, then eps, then dropout.
    With min_snr, the loss is weighted with that gamma (`min_snr_weight`).
    accumulate  equal parts in which the batch passes through, so that memory for one suffices. Their gradients' mean is
                that of the whole batch, up to rounding; but dropout is drawn part by part, and so is another
    Raises ValueError if the batch cannot be cut into equal parts.
    """
    t = schedule.sample_t(rng, len(x0))  # (N,)
    eps = rng.standard_normal(x0.shape, dtype=np.float32)  # (N, H, W, C)
    weight = None if min_snr is None else min_snr_weight(schedule, t, min_snr)

    def loss_of(part: slice) -> Tensor:
        labels, weights = (None if a is None else a[part] for a in (cond, weight))
        return training_loss(model, schedule, x0[part], t[part], eps[part], labels, rng, weights)

    return gradient_step(optimizer, len(x0), accumulate, loss_of)


def gradient_step(optimizer: AdamW, n: int, accumulate: int, loss_of: Callable[[slice], Tensor]) -> StepStats:
    """One step of the optimiser on the mean of loss_of(part) over equal parts of a batch of n, one after the other.

    Raises ValueError if the batch cannot be cut into that many.
    """
    if n % accumulate:
        raise ValueError(f"a batch of {n} cannot be cut into {accumulate} equal parts")
    optimizer.zero_grad()
    losses, size = [], n // accumulate
    for start in range(0, n, size):
        loss = loss_of(slice(start, start + size))
        loss.backward(np.float32(1 / accumulate))
        losses.append(loss.backend.later(loss.data))
    norm = optimizer.step()
    return StepStats(optimizer.step_count, losses, optimizer.backend.later(norm))


def train(
    model: Callable[..., Any],
    schedule: AnySchedule,
    optimizer: AdamW,
    batches: Iterator[tuple[np.ndarray, Any]],
    config: TrainConfig,
) -> Iterator[StepStats]:
    """Every step that is left until config.steps, one StepStats each. A progress bar and a log are loops over it.

    batches yields (x0, cond) for the steps from optimizer.step_count + 1 on. The rest as of `steps`.
    """

    def learn(batch: tuple[np.ndarray, Any], rng: np.random.Generator) -> StepStats:
        x0, cond = batch
        return train_step(model, schedule, optimizer, x0, rng, cond, config.min_snr, config.accumulate)

    return steps(learn, optimizer, batches, config)


def steps(
    learn: Callable[[Any, np.random.Generator], StepStats],
    optimizer: AdamW,
    batches: Iterator[Any],
    config: TrainConfig,
) -> Iterator[StepStats]:
    """learn(batch, rng) for every batch, at the step's learning rate and with the step's own generator.

    A step whose gradient is not finite is skipped: it changes no weight, and its StepStats tells of it.
    Raises MinidiffError, with the step, when that was so ten times in a row, and if memory does not suffice.
    """
    for batch in batches:
        step = optimizer.step_count + 1
        optimizer.lr = config.rate(step)
        rng = np.random.default_rng([config.seed, step])
        try:
            stats = learn(batch, rng)
        except MemoryError:  # CuPy's, too
            n = config.batch_size
            remedy = f"start a new run with --batch-size {max(n // 2, 1)}"
            raise MinidiffError(f"step {step}: there is no memory for {n} pictures at a time; {remedy}") from None
        check_skipped(step - 1, optimizer.skipped_before, optimizer.lr)  # this step need not be waited for
        yield stats


def check_skipped(step: int, skipped: int, lr: float) -> None:
    """Raises MinidiffError if so many steps in a row, up to this one, were skipped that the run is lost."""
    if skipped >= MOST_SKIPPED:
        raise MinidiffError(
            f"step {step}: the gradient was not finite {skipped} times in a row (the learning rate is {lr:g}); "
            "start a new run with a smaller --lr"
        )
