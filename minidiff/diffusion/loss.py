"""The training loss, its min-SNR weights, the term of a learned variance, and importance sampling of t.

The last two are from Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021 (arXiv 2102.09672).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minidiff.diffusion.continuous import preconditioning
from minidiff.diffusion.forward import q_posterior, q_sample, target, x0_and_eps
from minidiff.diffusion.model import Model, with_variance
from minidiff.diffusion.schedule import AnySchedule, Schedule, snr
from minidiff.diffusion.steps import learned_log_variance, reverse_variance
from minidiff.engine.functional import add, affine, mul, split
from minidiff.engine.gaussian import bound_terms
from minidiff.engine.losses import mse, squared_errors, weighted_mean
from minidiff.engine.rng import Rng
from minidiff.engine.tensor import Tensor
from minidiff.errors import MinidiffError

VARIATIONAL_WEIGHT = 0.001  # lambda, of the whole bound in the hybrid loss
HISTORY = 10  # losses of each t that importance sampling remembers
UNIFORM = 0.001  # probability of a uniform t, as in the paper's code: a t whose losses were near 0 is still drawn


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
    cond=cond and rng=rng (for dropout) are passed unless None. weight (N,) multiplies each image's loss.
    each(losses) is called with the images' losses without that weight, an array (N,) of the backend.

    A model that predicts its variance too, (N, H, W, 2 C), has the hybrid loss L_simple + lambda L_vlb (Nichol &
    Dhariwal eq. 16), lambda = 0.001. L_vlb, the bound in bits per dimension, is T times the expectation of the terms of
    a uniform t, so a term's weight is T / 1000.
    Raises MinidiffError for a t out of the schedule's range.
    """
    x_t = q_sample(schedule, x0, t, eps)
    extras = {name: value for name, value in (("cond", cond), ("rng", rng)) if value is not None}
    prediction = model(x_t, t, **extras)
    weight = None if weight is None else weight.astype(x0.dtype)
    if prediction.shape == with_variance(x0.shape):
        losses = _hybrid_losses(schedule, x0, x_t, t, eps, prediction)
        if each is not None:
            each(losses.data)
        return weighted_mean(losses, weight)
    weight = None if weight is None else weight.reshape(-1, 1, 1, 1)
    return mse(prediction, target(schedule, x0, t, eps), weight, each)


def _hybrid_losses(schedule: AnySchedule, x0: Any, x_t: Any, t: np.ndarray, eps: Any, prediction: Tensor) -> Tensor:
    """L_simple + lambda L_vlb of each image, (N,)."""
    if not isinstance(schedule, Schedule):
        raise MinidiffError(f"a learned variance is not defined for {schedule.prediction_type}: predict epsilon")
    simple, v = split(prediction)  # (N, H, W, C) each
    terms = _variational_terms(schedule, x0, x_t, t, simple.data, v)
    scale = VARIATIONAL_WEIGHT * len(schedule) / math.log(2)  # nats to bits
    return add(squared_errors(simple, target(schedule, x0, t, eps)), affine(terms, scale))


def _variational_terms(schedule: Schedule, x0: Any, x_t: Any, t: np.ndarray, prediction: Any, v: Tensor) -> Tensor:
    """L_t of the variational bound for each image, nats per dimension: (N,).

    `prediction` is an array: the mean that it gives is constant, so that v alone receives this gradient (section 3.1).
    """
    at_0, at_1 = (learned_log_variance(schedule, np.full((len(x0), 1, 1, 1), v, x0.dtype), t) for v in (0, 1))
    slope, offset = (Tensor(a, v.backend) for a in (at_1 - at_0, at_0))  # the log variance is affine in v
    images, x_t = v.backend.asarray(x0), v.backend.asarray(x_t)
    x0_hat, _ = x0_and_eps(schedule, prediction, x_t, t)
    (mean, _), (mean_hat, _) = (q_posterior(schedule, x, x_t, t) for x in (images, x0_hat))
    beta_tilde = reverse_variance(schedule, None, x_t, t, "fixed_small")
    return bound_terms(add(mul(v, slope), offset), x0, mean, beta_tilde, mean_hat, t == 0)


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


def loss_history(schedule: AnySchedule) -> np.ndarray:
    """The last HISTORY losses of every t, the newest last: (T, HISTORY) float32. Those not yet known are NaN.

    Raises MinidiffError for a schedule in continuous time.
    """
    if not isinstance(schedule, Schedule):
        raise MinidiffError(f"importance sampling of t needs whole timesteps, which {schedule.prediction_type} lacks")
    return np.full((len(schedule), HISTORY), np.nan, np.float32)


def importance_sample(history: np.ndarray, rng: Rng, n: int) -> tuple[np.ndarray, np.ndarray]:
    """t (n,) with p_t proportional to sqrt(E[L_t^2]), and weights 1 / (p_t T), (n,) float32 (Nichol & Dhariwal eq. 18).

    The expectation is over the history; t is uniform until that has HISTORY losses of every t. The weights make the
    mean of the weighted losses an unbiased estimate of that of uniform t, with the least variance if p_t is exact.
    """
    T = len(history)
    if np.isnan(history[:, 0]).any():
        return rng.integers(0, T, n), np.ones(n, np.float32)
    root = np.sqrt(np.mean(np.square(history, dtype=np.float64), 1))
    p = (1 - UNIFORM) * root / root.sum() + UNIFORM / T
    cumulative = np.cumsum(p)
    t = np.searchsorted(cumulative / cumulative[-1], rng.random(n), side="right")
    return t, (1 / (p[t] * T)).astype(np.float32)


def record_losses(history: np.ndarray, t: np.ndarray, losses: np.ndarray) -> None:
    """Add the losses (N,) of timesteps t (N,) to a history, in place; those that are not finite are left out."""
    for i, loss in zip(t, losses, strict=True):
        if np.isfinite(loss):
            history[i] = [*history[i, 1:], loss]
