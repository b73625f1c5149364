"""The training loss: how well the model tells what was mixed into the picture."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minidiff.diffusion.forward import q_sample, target
from minidiff.diffusion.schedule import Schedule, snr
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
    weight: np.ndarray | None = None,
) -> Tensor:
    """Mean squared error of the model's prediction at x_t, a scalar (DDPM algorithm 1 and eq. 14).

    x0 and eps are float (N, H, W, C), t is int (N,). model(x_t, t) predicts what the schedule's prediction
    type says; cond=cond and rng=rng (for dropout) are passed if there are any. weight (N,) is what each picture counts.
    Raises MinidiffError for a t that is not of the schedule.
    """
    x_t = q_sample(schedule, x0, t, eps)
    extras = {name: value for name, value in (("cond", cond), ("rng", rng)) if value is not None}
    prediction = model(x_t, t, **extras)
    weight = None if weight is None else weight.astype(x0.dtype).reshape(-1, 1, 1, 1)
    return mse(prediction, target(schedule, x0, t, eps), weight)


def min_snr_weight(schedule: Schedule, t: np.ndarray, gamma: float = 5.0) -> np.ndarray:
    """What each picture's loss is to count, (N,), so that no noise level outweighs the others (min-SNR-gamma).

    Hang et al. 2023 (arXiv 2303.09556): the error of x0_hat counts min(SNR, gamma). An error of eps_hat is one of
    x0_hat times SNR, and one of v_hat times SNR + 1, so theirs count that much less.
    """
    ratio = snr(schedule, t)
    per_x0 = np.minimum(ratio, gamma)
    if schedule.prediction_type == "epsilon":
        return per_x0 / ratio  # with epsilon there is no zero terminal SNR
    return per_x0 if schedule.prediction_type == "sample" else per_x0 / (ratio + 1)
