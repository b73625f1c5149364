"""Steps of consistency tuning, for the runs whose configuration has `consistency`, a number of stages."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from minidiff.data.dataset import slices
from minidiff.diffusion.consistency.tuning import consistency_loss, earlier_time, sample_t
from minidiff.diffusion.model import Model
from minidiff.diffusion.schedule import AnySchedule
from minidiff.engine.optim import AdamW
from minidiff.engine.rng import Rng
from minidiff.engine.tensor import Tensor
from minidiff.training.config import TrainConfig
from minidiff.training.parallel.gradients import of_all_parts
from minidiff.training.step import QUARTERS, StepStats, dropout_rngs, gradient_step


def stage_of(step: int, config: TrainConfig) -> int:
    """The stage of a step (1 ... steps): 1 ... config.consistency, each for an equal part of the steps."""
    assert config.consistency is not None
    return 1 + (step - 1) * config.consistency // config.steps


def consistency_step(
    model: Model, schedule: AnySchedule, optimizer: AdamW, x0: np.ndarray, rng: Rng, cond: Any, config: TrainConfig
) -> StepStats:
    """One optimiser step of consistency tuning on x0 (N, H, W, C), in config.accumulate parts, as `train_step`.

    rng draws t, then eps, then dropout. The gap from t to r is that of the step's stage.
    """
    t = sample_t(schedule, rng, len(x0))  # (N,)
    r = earlier_time(schedule, t, stage_of(optimizer.step_count + 1, config))
    eps = rng.standard_normal(x0.shape, dtype=np.float32)  # (N, H, W, C)
    quarters = np.minimum((QUARTERS * schedule.quantile(t)).astype(int), QUARTERS - 1)
    errors: list[Callable[[], Any]] = []
    rng_of = dropout_rngs(rng, config.accumulate)

    def loss_of(part: slice) -> Tensor:
        labels, times = None if cond is None else cond[part], (t[part], r[part])
        dropout = rng_of[part.start * config.accumulate // len(x0)]
        return consistency_loss(model, schedule, x0[part], times, eps[part], labels, dropout, record)

    def record(error: Any) -> None:
        errors.append(optimizer.backend.later(error))

    stats = gradient_step(optimizer, len(x0), config.accumulate, loss_of)
    return replace(stats, errors=of_all_parts(errors), quarters=quarters)


def consistency_error(
    model: Model, schedule: AnySchedule, x0: np.ndarray, cond: Any, rng: Rng, config: TrainConfig
) -> float:
    """The loss of the last stage's gap on images x0 (n, H, W, C), without dropout, in parts of a training step's size.

    rng draws t, then eps.
    """
    assert config.consistency is not None
    n = len(x0)
    t, eps = sample_t(schedule, rng, n), rng.standard_normal(x0.shape, dtype=np.float32)
    r = earlier_time(schedule, t, config.consistency)
    total = 0.0
    for part in slices(n, config.batch_size // config.accumulate):
        conds = None if cond is None else cond[part]
        loss = consistency_loss(model, schedule, x0[part], (t[part], r[part]), eps[part], conds)
        total += float(loss.numpy()) * (part.stop - part.start)
    return total / n
