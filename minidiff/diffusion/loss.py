"""The training loss: how well the model tells what was mixed into the picture."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minidiff.diffusion.forward import q_sample, target
from minidiff.diffusion.schedule import Schedule
from minidiff.engine.functional import mse
from minidiff.engine.tensor import Tensor


def training_loss(
    model: Callable[..., Tensor],
    schedule: Schedule,
    x0: np.ndarray,
    t: np.ndarray,
    eps: np.ndarray,
    cond: Any = None,
    rng: Any = None,
) -> Tensor:
    """Mean squared error of the model's prediction at x_t, a scalar (DDPM algorithm 1 and eq. 14).

    x0 and eps are float (N, H, W, C), t is int (N,). model(x_t, t) predicts what the schedule's prediction
    type says; cond=cond and rng=rng (for dropout) are passed if there are any.
    Raises MinidiffError for a t that is not of the schedule.
    """
    x_t = q_sample(schedule, x0, t, eps)
    extras = {name: value for name, value in (("cond", cond), ("rng", rng)) if value is not None}
    prediction = model(x_t, t, **extras)
    return mse(prediction, target(schedule, x0, t, eps))
