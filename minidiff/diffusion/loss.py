"""The training loss: how well the model tells what was mixed into the picture."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minidiff.diffusion.continuous import SIGMA_DATA
from minidiff.diffusion.forward import q_sample, target
from minidiff.diffusion.schedule import AnySchedule, snr
from minidiff.engine.losses import mse
from minidiff.engine.tensor import Tensor


def training_loss(
    model: Callable[..., Tensor],
    schedule: AnySchedule,
    x0: np.ndarray,
    t: np.ndarray,
    eps: np.ndarray,
    cond: Any = None,
    rng: Any = None,
    weight: np.ndarray | None = None,
) -> Tensor:
    """Mean squared error of the model's prediction at x_t, a scalar (DDPM algorithm 1 and eq. 14).

    x0 and eps are float (N, H, W, C), t is (N,), of the schedule. model(x_t, t) predicts what the schedule's prediction
    type says; cond=cond and rng=rng (for dropout) are passed if there are any. weight (N,) is what each picture counts.
    Raises MinidiffError for a t that is not of the schedule.
    """
    x_t = q_sample(schedule, x0, t, eps)
    extras = {name: value for name, value in (("cond", cond), ("rng", rng)) if value is not None}
    prediction = model(x_t, t, **extras)
    weight = None if weight is None else weight.astype(x0.dtype).reshape(-1, 1, 1, 1)
    return mse(prediction, target(schedule, x0, t, eps), weight)


def min_snr_weight(schedule: AnySchedule, t: np.ndarray, gamma: float = 5.0) -> np.ndarray:
    """What each picture's loss is to count, (N,), so that no noise level outweighs the others (min-SNR-gamma).

    Hang et al. 2023 (arXiv 2303.09556): the error of x0_hat counts min(SNR, gamma). A wrong prediction is wrong in
    x0_hat by a factor that goes with the noise level, and counts by the square of it.
    """
    per_x0 = np.minimum(snr(schedule, t), gamma)
    if schedule.prediction_type == "epsilon":  # where there is no zero terminal SNR
        return per_x0 / snr(schedule, t)
    if schedule.prediction_type == "sample":
        return per_x0
    alpha_bar = schedule.alpha_bar(t)
    if schedule.prediction_type == "v_prediction":
        return per_x0 * (1 - alpha_bar)
    if schedule.prediction_type == "flow":
        return per_x0 * (1 - alpha_bar) / (np.sqrt(alpha_bar) + np.sqrt(1 - alpha_bar)) ** 2
    return per_x0 * SIGMA_DATA**2 * (1 - alpha_bar) / (1 - alpha_bar + SIGMA_DATA**2 * alpha_bar)  # edm's c_out squared
