"""Forward diffusion: from a picture into noise, and what x0, the noise and v say about one another.

x0, x_t, eps and v are float arrays (N, H, W, C) of any array module; t is a 0-based int or ints (N,) in host
memory, or real numbers where the schedule is continuous (continuous.py). x_t is x0 and eps in a mixture whose squared
weights are alphas_cumprod and 1 - alphas_cumprod, so any two of x0, x_t, eps and v give the others. Each function
raises MinidiffError when a t is not of the schedule.
"""

import sys
from typing import Any

import numpy as np

from minidiff.diffusion.continuous import SIGMA_DATA, x_t_std
from minidiff.diffusion.schedule import AnySchedule, Schedule, lookup
from minidiff.errors import MinidiffError

Time = int | float | np.ndarray


def q_sample(schedule: AnySchedule, x0: np.ndarray, t: Time, eps: np.ndarray) -> np.ndarray:
    """x_t, t + 1 steps of noise at once (DDPM eq. 4)."""
    signal, noise = signal_and_noise(schedule, t, x0)
    return signal * x0 + noise * eps


def q_posterior(
    schedule: Schedule, x0: np.ndarray, x_t: np.ndarray, t: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where x_{t-1} was, given x0 and x_t: mean (N, H, W, C) and variance (N, 1, 1, 1) (DDPM eq. 6 and 7)."""
    alphas, betas, alpha_bar_prev = schedule.alphas, schedule.betas, schedule.alphas_cumprod_prev
    of_x0 = np.sqrt(alpha_bar_prev) * betas / (1 - schedule.alphas_cumprod)
    of_x_t = np.sqrt(alphas) * (1 - alpha_bar_prev) / (1 - schedule.alphas_cumprod)
    mean = at(of_x0, t, x0) * x0 + at(of_x_t, t, x0) * x_t
    return mean, at(schedule.posterior_variance, t, x0)


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
    """What the model is trained to predict at x_t, by the schedule's prediction type.

    epsilon: eps. sample: x0. v_prediction: v. flow: eps - x0, the way from picture to noise (Liu et al. 2022, eq. 1).
    edm: (x0 - c_skip x) / c_out, whose variance is 1 at every t (Karras et al. 2022, eq. 8), here as the mixture
    of x0 and eps that it is.
    """
    if schedule.prediction_type == "epsilon":
        return eps
    if schedule.prediction_type == "sample":
        return x0
    if schedule.prediction_type == "flow":
        return eps - x0
    if schedule.prediction_type == "edm":
        signal, noise = signal_and_noise(schedule, t, x0)
        return (noise / SIGMA_DATA * x0 - SIGMA_DATA * signal * eps) / x_t_std(signal, noise)
    return v_from_x0_eps(schedule, x0, eps, t)


def x0_and_eps(
    schedule: AnySchedule, prediction: np.ndarray, x_t: np.ndarray, t: Time
) -> tuple[np.ndarray, np.ndarray]:
    """x0_hat and eps_hat, both, from what the model predicts at x_t: the inverse of `target`."""
    if schedule.prediction_type == "epsilon":
        return x0_from_eps(schedule, prediction, x_t, t), prediction
    if schedule.prediction_type == "sample":
        return prediction, eps_from_x0(schedule, prediction, x_t, t)
    if schedule.prediction_type == "v_prediction":
        return x0_from_v(schedule, prediction, x_t, t), eps_from_v(schedule, prediction, x_t, t)
    signal, noise = signal_and_noise(schedule, t, x_t)
    if schedule.prediction_type == "flow":
        return (x_t - noise * prediction) / (signal + noise), (x_t + signal * prediction) / (signal + noise)
    r = x_t_std(signal, noise)
    x, F = x_t / r**2, SIGMA_DATA * prediction / r
    return SIGMA_DATA**2 * signal * x + noise * F, noise * x - signal * F


def signal_and_noise(schedule: AnySchedule, t: Time, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar), the weights of x0 and eps in x_t: (N, 1, 1, 1) each, in x's dtype."""
    alpha_bar = schedule.alpha_bar(t)
    return shaped(np.sqrt(alpha_bar), x), shaped(np.sqrt(1 - alpha_bar), x)


def at(table: np.ndarray, t: int | np.ndarray, x: Any) -> Any:
    """table[t] as `shaped` makes it."""
    return shaped(lookup(table, t), x)


def shaped(values: np.ndarray, x: Any) -> Any:
    """One number or N of them in the dtype and array module of x, shaped to multiply it: (N or 1, 1, 1, 1)."""
    if "float" not in str(x.dtype):
        raise MinidiffError(f"diffusion needs pictures in floats from -1 to 1, not {x.dtype}")
    xp = sys.modules[type(x).__module__.partition(".")[0]]  # numpy or cupy, without importing either
    return xp.asarray(values.reshape(-1, *[1] * (x.ndim - 1)), dtype=x.dtype)
