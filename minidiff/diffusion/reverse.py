"""Reverse diffusion: from noise to a picture, one step at a time.

In every step eps_hat is what the model predicts at x_t, by the schedule's prediction type: the noise, x0 or v.
z is fresh noise of x_t's shape. t is an int of the schedule; to take long steps, `respace` the schedule first.
"""

import math
from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any

import numpy as np

from minidiff.diffusion.forward import at, q_posterior, x0_and_eps
from minidiff.diffusion.schedule import Schedule, respace
from minidiff.engine.tensor import no_grad
from minidiff.errors import MinidiffError

SAMPLERS = ("ddpm", "ddim")


def denoise(
    schedule: Schedule, eps_hat: np.ndarray, x_t: np.ndarray, t: int, clip_x0: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The model's guess of the picture and of the noise in x_t: x0_hat, clipped to [-1, 1] on demand, and eps."""
    x0_hat, eps_hat = x0_and_eps(schedule, eps_hat, x_t, t)
    return (x0_hat.clip(-1, 1) if clip_x0 else x0_hat), eps_hat


def p_sample(
    schedule: Schedule,
    eps_hat: np.ndarray,
    x_t: np.ndarray,
    t: int,
    z: np.ndarray | None,
    variance: str = "fixed_small",
    clip_x0: bool = False,
) -> np.ndarray:
    """x_{t-1} from x_t (DDPM algorithm 2): where x_{t-1} was if x0_hat were x0, and noise around it.

    variance is DDPM's beta tilde ("fixed_small") or beta ("fixed_large"), section 3.2. z is not used at t = 0.
    """
    x0_hat, _ = denoise(schedule, eps_hat, x_t, t, clip_x0)
    mean, beta_tilde = q_posterior(schedule, x0_hat, x_t, t)  # eq. 7; with eps_hat for x0_hat, eq. 11
    if variance not in ("fixed_small", "fixed_large"):
        raise MinidiffError(f"variance {variance!r:.80} is not supported: use fixed_small or fixed_large")
    if t == 0:
        return mean
    sigma2 = beta_tilde if variance == "fixed_small" else at(schedule.betas, t, x_t)
    return mean + sigma2**0.5 * z


def ddim_step(
    schedule: Schedule,
    eps_hat: np.ndarray,
    x_t: np.ndarray,
    t: int,
    t_prev: int,
    eta: float,
    z: np.ndarray | None,
    clip_x0: bool = False,
) -> np.ndarray:
    """x_{t_prev} from x_t, for -1 <= t_prev < t, where -1 is the picture itself (DDIM eq. 12 and 16).

    eta in [0, 1] mixes fresh noise in: 0 takes none (z is not used), 1 takes as much as DDPM.
    """
    _check_ddim(eta, t, t_prev)
    x0_hat, eps_hat = denoise(schedule, eps_hat, x_t, t, clip_x0)
    abar, abar_prev = float(schedule.alphas_cumprod[t]), float(schedule.alphas_cumprod_prev[t_prev + 1])
    ...
