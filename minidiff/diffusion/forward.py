"""Forward diffusion: adding noise to images, and conversions between x0, eps, v and the other prediction targets.

x0, x_t, eps and v are float arrays (N, H, W, C) of any array module; t is a 0-based int or ints (N,) in host
memory, or real numbers where the schedule is continuous (continuous.py). x_t = sqrt(alpha_bar) x0 +
sqrt(1 - alpha_bar) eps, so any two of x0, x_t, eps and v determine the others. Each function raises MinidiffError for
a t out of the schedule's range.
"""

import sys
from typing import Any

import numpy as np

from minidiff.diffusion.continuous import SIGMA_DATA, preconditioning
from minidiff.diffusion.schedule import AnySchedule, Schedule, lookup
from minidiff.errors import MinidiffError

Time = int | float | np.ndarray


def q_sample(schedule: AnySchedule, x0: np.ndarray, t: Time, eps: np.ndarray) -> np.ndarray:
    """x_t ~ q(x_t | x0), the noise of steps 0 ... t added at once (DDPM eq. 4)."""
    signal, noise = signal_and_noise(schedule, t, x0)
    return signal * x0 + noise * eps


def q_posterior(
    schedule: Schedule, x0: np.ndarray, x_t: np.ndarray, t: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """q(x_{t-1} | x_t, x0): its mean (N, H, W, C) and variance beta tilde (N, 1, 1, 1) (DDPM eq. 6 and 7)."""
    alphas, betas, alpha_bar_prev = schedule.alphas, schedule.betas, schedule.alphas_cumprod_prev
    coef_x0 = np.sqrt(alpha_bar_prev) * betas / (1 - schedule.alphas_cumprod)
    coef_x_t = np.sqrt(alphas) * (1 - alpha_bar_prev) / (1 - schedule.alphas_cumprod)
    mean = extract(coef_x0, t, x0) * x0 + extract(coef_x_t, t, x0) * x_t
    return mean, extract(schedule.posterior_variance, t, x0)


def x0_from_eps(schedule: AnySchedule, eps: np.ndarray, x_t: np.ndarray, t: Time) -> np.ndarray:
    """`x0 = (x_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar)` (DDPM eq. 15)."""
    signal, noise = signal_and_noise(schedule, t, x_t)
    return (x_t - noise * eps) / signal


def eps_from_x0(schedule: AnySchedule, x0: np.ndarray, x_t: np.ndarray, t: Time) -> np.ndarray:
    """`eps = (x_t - sqrt(alpha_bar) x0) / sqrt(1 - alpha_bar)` (DDPM eq. 4, solved)."""
    signal, noise = signal_and_noise(schedule, t, x_t)
    return (x_t - signal * x0) / noise


def v_from_x0_eps(schedule: AnySchedule, x0: np.ndarray, eps: np.ndarray, t: Time) -> np.ndarray:
    """`v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0` (Salimans & Ho appendix D)."""
    signal, noise = signal_and_noise(schedule, t, x0)
    return signal * eps - noise * x0


def x0_from_v(schedule: AnySchedule, v: np.ndarray, x_t: np.ndarray, t: Time) -> np.ndarray:
    """`x0 = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v` (Salimans & Ho appendix D)."""
    signal, noise = signal_and_noise(schedule, t, x_t)
    return signal * x_t - noise * v


def eps_from_v(schedule: AnySchedule, v: np.ndarray, x_t: np.ndarray, t: Time) -> np.ndarray:
    """`eps = sqrt(1 - alpha_bar) x_t + sqrt(alpha_bar) v` (Salimans & Ho appendix D)."""
    signal, noise = signal_and_noise(schedule, t, x_t)
    return noise * x_t + signal * v


def target(schedule: AnySchedule, x0: np.ndarray, t: Time, eps: np.ndarray) -> np.ndarray:
    """The prediction target at x_t, by the schedule's prediction type.

    epsilon: eps. sample: x0. v_prediction: v. flow: eps - x0, the velocity dx/dt (Liu et al. 2022, eq. 1, where time
    runs the other way and the sign is opposite). edm: (x0 - c_skip x) / c_out (Karras et al. 2022, eq. 8), computed in
    float64, since at small sigma the numerator is a small difference.
    """
    if schedule.prediction_type == "epsilon":
        return eps
    if schedule.prediction_type == "sample":
        return x0
    if schedule.prediction_type == "flow":
        return eps - x0
    if schedule.prediction_type == "edm":
        signal, noise = signal_and_noise(schedule, t, x0.astype(np.float64))
        sigma = noise / signal  # (N, 1, 1, 1) float64
        c_skip, c_out, _, _ = preconditioning(sigma)
        x = x0 + sigma * eps
        return ((x0 - c_skip * x) / c_out).astype(x0.dtype)
    return v_from_x0_eps(schedule, x0, eps, t)


def x0_and_eps(
    schedule: AnySchedule, prediction: np.ndarray, x_t: np.ndarray, t: Time
) -> tuple[np.ndarray, np.ndarray]:
    """x0_hat and eps_hat from the model's prediction at x_t: the inverse of `target`."""
    if schedule.prediction_type == "epsilon":
        return x0_from_eps(schedule, prediction, x_t, t), prediction
    if schedule.prediction_type == "sample":
        return prediction, eps_from_x0(schedule, prediction, x_t, t)
    if schedule.prediction_type == "v_prediction":
        return x0_from_v(schedule, prediction, x_t, t), eps_from_v(schedule, prediction, x_t, t)
    signal, noise = signal_and_noise(schedule, t, x_t)
    if schedule.prediction_type == "flow":
        return (x_t - noise * prediction) / (signal + noise), (x_t + signal * prediction) / (signal + noise)
    x, sigma = x_t / signal, noise / signal  # edm
    c_skip, c_out, c_in, _ = preconditioning(sigma)
    x0_hat = c_skip * x + c_out * prediction  # D(x; sigma)
    eps_hat = c_in * (c_in * sigma * x - SIGMA_DATA * prediction)  # (x - x0_hat) / sigma; that cancels at small sigma
    return x0_hat, eps_hat


def signal_and_noise(schedule: AnySchedule, t: Time, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar), the coefficients of x0 and eps in x_t: (N, 1, 1, 1), in x's dtype."""
    alpha_bar = schedule.alpha_bar(t)
    return _broadcast(np.sqrt(alpha_bar), x), _broadcast(np.sqrt(1 - alpha_bar), x)


def extract(table: np.ndarray, t: int | np.ndarray, x: Any) -> Any:
    """table[t] in the dtype and array module of x, in a shape that broadcasts with it: (N or 1, 1, 1, 1)."""
    return _broadcast(lookup(table, t), x)


def _broadcast(values: np.ndarray, x: Any) -> Any:
    """A scalar or (N,) in the dtype and array module of x, in a shape that broadcasts with it: (N or 1, 1, 1, 1)."""
    if "float" not in str(x.dtype):
        raise MinidiffError(f"images must be floats from -1 to 1, not {x.dtype}")
    xp = sys.modules[type(x).__module__.partition(".")[0]]  # numpy or cupy, without importing either
    return xp.asarray(values.reshape(-1, *[1] * (x.ndim - 1)), dtype=x.dtype)
