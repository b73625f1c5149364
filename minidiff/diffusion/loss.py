"""The training loss, and its min-SNR weights."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minidiff.diffusion.continuous import preconditioning
from minidiff.diffusion.forward import q_sample, target
from minidiff.diffusion.model import Model
from minidiff.diffusion.schedule import AnySchedule, snr
from minidiff.engine.losses import mse
from minidiff.engine.rng import Rng
from minidiff.engine.tensor import Tensor


def training_loss(
    model: Model,
    schedule: AnySchedule,
    x0: np.ndarray,
    t: np.ndarray,
    eps: np.ndarray,
    cond: Any = None,
    rng: Rng | None = None,
    weight: np.ndarray | None = None,
    each: Callable[[Any], object] | None = None,
) -> Tensor:
    """Mean squared error of the model's prediction at x_t, a scalar (DDPM algorithm 1 and eq. 14).

    x0 and eps are float (N, H, W, C), t is (N,). model(x_t, t) predicts the target of the schedule's prediction type;
    cond=cond and rng=rng (for dropout) are passed unless None. weight (N,) multiplies each image's squared error.
    each(errors) is called with the images' mean squared errors without that weight, an array (N,) of the backend.
    Raises MinidiffError for a t out of the schedule's range.
    """
    x_t = q_sample(schedule, x0, t, eps)
    extras = {name: value for name, value in (("cond", cond), ("rng", rng)) if value is not None}
    prediction = model(x_t, t, **extras)
    weight = None if weight is None else weight.astype(x0.dtype).reshape(-1, 1, 1, 1)
    return mse(prediction, target(schedule, x0, t, eps), weight, each)


def min_snr_weight(schedule: AnySchedule, t: np.ndarray, gamma: float = 5.0) -> np.ndarray:
    """min-SNR-gamma loss weights, (N,) (Hang et al. 2023, arXiv 2303.09556).

    They give the squared error of x0_hat the weight min(SNR, gamma), whatever the prediction type. An unweighted loss
    gives it SNR if eps is predicted, so that only low noise levels lose weight, and SNR + 1 if v is predicted, so that
    high noise levels lose weight too: there min(SNR, gamma) tends to 0, SNR + 1 to 1.
    """
    x0_weight = np.minimum(snr(schedule, t), gamma)
    if schedule.prediction_type == "epsilon":  # never with zero terminal SNR
        return x0_weight / snr(schedule, t)
    if schedule.prediction_type == "sample":
        return x0_weight
    alpha_bar = schedule.alpha_bar(t)
    if schedule.prediction_type == "v_prediction":
        return x0_weight * (1 - alpha_bar)
    if schedule.prediction_type == "flow":
        return x0_weight * (1 - alpha_bar) / (np.sqrt(alpha_bar) + np.sqrt(1 - alpha_bar)) ** 2
    _, c_out, _, _ = preconditioning(snr(schedule, t) ** -0.5)  # edm
    return x0_weight * c_out**2
