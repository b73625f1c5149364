"""Easy consistency tuning: a diffusion model becomes a consistency model (Geng et al. 2024, arXiv 2406.14548).

For two times t > r, the same x0 and the same eps, the loss is the distance of f(x_t, t) to f(x_r, r), where the latter
is a constant target (`consistency_loss`). With r = 0 that target is x0, and the loss that of a diffusion model. So a
trained diffusion model is the start, and r then moves to t in stages (`earlier_time`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from minidiff.diffusion.consistency.function import coefficients, consistency
from minidiff.diffusion.continuous import EDM
from minidiff.diffusion.forward import q_sample, signal_and_noise
from minidiff.diffusion.model import Model
from minidiff.diffusion.schedule import AnySchedule, Schedule
from minidiff.engine.losses import mse
from minidiff.engine.rng import Rng
from minidiff.engine.tensor import Tensor, no_grad

LOW_SIGMA = 0.16  # tan of a tenth of pi / 2, so that EDM has about the limit of the cosine schedule
HUBER = 0.03  # c of the pseudo-Huber weights, for a difference's root mean square (Song & Dhariwal 2023, section 3.3)


def sample_t(schedule: AnySchedule, rng: Rng, n: int) -> np.ndarray:
    """Times t (n,) of a step, above the boundary: uniform over whole timesteps 1 ... T - 1, and over flow's (0, 1].

    EDM's ln sigma is normal with mean -1.1 and standard deviation 2 (Geng et al., table 5), sigma from 2 sigma_min to
    sigma_max.
    """
    if isinstance(schedule, Schedule):
        return rng.integers(1, len(schedule), n)
    if isinstance(schedule, EDM):
        sigma = np.exp(2 * rng.standard_normal((n,), dtype=np.float64) - 1.1)
        return sigma.clip(2 * schedule.sigma_min, schedule.sigma_max)
    return 1 - rng.random(n)


def earlier_time(schedule: AnySchedule, t: np.ndarray, stage: int) -> np.ndarray:
    """r = (1 - 2^-stage) t, (N,): the gap t - r halves from stage to stage (Geng et al. section 3.2, with q = 2).

    Whole timesteps are rounded down, and so r < t: the gap is at least one of them. For t in the lowest tenth, or EDM's
    sigma up to 0.16, r is the smallest time, where f(x_r, r) is x_r: so f stays bound to the images.
    """
    r = (1 - 0.5**stage) * np.asarray(t)
    if isinstance(schedule, Schedule):
        return np.where(10 * t <= len(schedule), 0, np.minimum(np.floor(r).astype(np.int64), t - 1))
    if isinstance(schedule, EDM):
        return np.where(t <= LOW_SIGMA, schedule.sigma_min, r)
    return np.where(t <= 0.1, 0, r)


def consistency_loss(
    model: Model,
    schedule: AnySchedule,
    x0: np.ndarray,
    times: tuple[np.ndarray, np.ndarray],
    eps: np.ndarray,
    cond: Any = None,
    rng: Rng | None = None,
    each: Callable[[Any], object] | None = None,
) -> Tensor:
    """The mean of w |f(x_t, t) - f(x_r, r)|^2, a scalar; no gradient passes through f(x_r, r) and w.

    x0 and eps are float (N, H, W, C), times t and r, (N,) each, with r < t; both x_t and x_r have this eps. model, cond
    and each as of `training_loss`. rng seeds dropout, with the same masks at t and at r.

    w = b / ((t - r) sqrt(d^2 + c^2)), where t - r is in units of T if timesteps are whole, and d the root mean square
    of f(x_t, t) - f(x_r, r) over the image: the gradient is that of the pseudo-Huber distance sqrt(d^2 + c^2) - c,
    times b / (t - r). In b = sqrt(alpha_bar) sqrt(1 - alpha_bar) / |B|, where f = A x_t + B F, the second factor gives
    F, whatever it predicts, a gradient of the size that v has. The first takes weight from the highest noise levels,
    whose differences are mostly noise. Raises MinidiffError for a t out of the schedule's range.
    """
    (t, r), (at_r, at_t) = times, _extras(cond, rng)
    x_r, x_t = (q_sample(schedule, x0, time, eps) for time in (r, t))
    with no_grad():
        target = consistency(schedule, model(x_r, r, **at_r).numpy(), x_r, r)
    prediction = model(x_t, t, **at_t)
    A, B = coefficients(schedule, t)  # f = A x_t + B prediction, so its error is B times that of the prediction
    wanted = ((target - A * x_t) / B).astype(x0.dtype)
    squared = np.square(B * (prediction.numpy() - wanted)).mean((1, 2, 3), keepdims=True)  # d^2, (N, 1, 1, 1)
    signal, noise = signal_and_noise(schedule, t, B)
    weight = np.abs(B) * signal * noise / (_gap(schedule, t, r) * np.sqrt(squared + HUBER**2))  # w B^2
    return mse(prediction, wanted, weight.astype(x0.dtype), each)


def _gap(schedule: AnySchedule, t: np.ndarray, r: np.ndarray) -> np.ndarray:
    """t - r, (N, 1, 1, 1); of whole timesteps as a fraction of all."""
    gap = (t - r).reshape(-1, 1, 1, 1)
    return gap / len(schedule) if isinstance(schedule, Schedule) else gap


def _extras(cond: Any, rng: Rng | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's further arguments at r and at t: cond, and generators of the same random numbers."""
    extras = {} if cond is None else {"cond": cond}
    if rng is None:
        return extras, extras
    seed = int(rng.integers(0, 2**63 - 1, 1)[0])
    at_r, at_t = (extras | {"rng": np.random.default_rng(seed)} for _ in "rt")
    return at_r, at_t
