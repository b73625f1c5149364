"""Exact likelihood of a model, by the probability-flow ODE (Song et al. 2021, section 4.3 and appendix D.2).

Along a solution of dx/ds = v(x, s) the density changes by d log p(x) / ds = -div v. So log p at the lowest noise level
is log N(x; 0, I) at the highest, plus the integral of div v between them. Over s = log(sigma) the ODE of x_t is

    dx/ds = sqrt(1 - alpha_bar) eps_hat(x, t) - (1 - alpha_bar) x,

which is `sde.probability_flow` of `vp_sde` in another time. The variational bound (bound.py) is of a model that samples
with fresh noise, and an upper bound of its bits; this is the likelihood of the ODE's endpoints itself.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from minidiff.diffusion.continuous import EDM
from minidiff.diffusion.noise_levels import MIN_ALPHA_BAR, sigmas_of, time_of
from minidiff.diffusion.schedule import AnySchedule, Schedule
from minidiff.diffusion.sde import Score, eps_of
from minidiff.errors import MinidiffError

MAX_SIGMA = math.sqrt(1 / MIN_ALPHA_BAR - 1)  # where rectified flow's, infinite at t = 1, is cut
BYTE_WIDTH = 1 / 127.5  # of images in [-1, 1]


def log_likelihood(
    model: Callable[..., Any],
    schedule: AnySchedule,
    x0: np.ndarray,
    cond: Any = None,
    steps: int = 50,
    probes: int | None = None,
    rng: Any = None,
) -> np.ndarray:
    """log p(x0) of the model, in nats: (N,). p is the density of x0 + sigma eps at the schedule's lowest noise level.

    x0 is float (N, H, W, C), float64 for more than five digits. The ODE is solved in so many steps of the classical
    Runge-Kutta method, of 4 evaluations of eps_hat and its divergence each.

    probes  of Hutchinson's estimate of the divergence, E[z^T J z] for random signs z, which rng draws once and keeps
            along the trajectory (Grathwohl et al. 2019, arXiv 1810.01367). None: the trace itself, over all H W C axes.
            Each probe, or axis, takes two model evaluations more

    Raises MinidiffError for a number of steps below 1 and for probes without rng.
    """
    if steps < 1 or (probes is not None and (probes < 1 or rng is None)):
        raise MinidiffError(f"steps = {steps}, probes = {probes}: give 1 or more of each, and an rng for probes")
    directions = _axes(x0) if probes is None else _random_signs(x0, probes, rng)
    slope = _slope(eps_of(model, schedule, cond), schedule, directions)
    low, high = _log_sigma_range(schedule)
    log_root = -0.5 * math.log1p(math.exp(2 * low))  # log sqrt(alpha_bar) at the lowest noise level
    x, divergence = math.exp(log_root) * x0, np.zeros(len(x0))
    for s, s_next in pairwise(np.linspace(low, high, steps + 1).tolist()):
        dx, d_divergence = _runge_kutta(slope, x, s, s_next - s)
        x, divergence = x + dx, divergence + d_divergence
    D = x0[0].size
    log_prior = -0.5 * (np.square(x, dtype=np.float64).reshape(len(x), -1).sum(1) + D * math.log(2 * math.pi))
    return log_prior + divergence + D * log_root  # from the density of x_t to that of x_t / sqrt(alpha_bar)


def ode_bits_per_dim(
    model: Callable[..., Any],
    schedule: AnySchedule,
    x0: np.ndarray,
    rng: Any,
    cond: Any = None,
    steps: int = 50,
    probes: int | None = 1,
) -> np.ndarray:
    """-log2 p(x0) per dimension, of images x0 whose values are bytes scaled to [-1, 1]: (N,).

    As in Song et al. 2021, table 2: the bytes are dequantised by uniform noise of their width, which makes the mean of
    this an upper bound of the bits of bytes, and the density is `log_likelihood`. rng draws that noise and the probes.
    """
    x0 = x0 + (BYTE_WIDTH * (rng.random(x0.shape) - 0.5)).astype(x0.dtype)
    nats = -log_likelihood(model, schedule, x0, cond, steps, probes, rng) / x0[0].size
    return (nats - math.log(BYTE_WIDTH)) / math.log(2)


def _slope(eps_hat: Score, schedule: AnySchedule, directions: np.ndarray) -> Callable[..., tuple[Any, Any]]:
    """dx/ds and its divergence, as a function of x and s = log(sigma)."""

    def slope(x: np.ndarray, s: float) -> tuple[np.ndarray, np.ndarray]:
        t, noise2 = time_of(schedule, math.exp(s)), 1 / (1 + math.exp(-2 * s))  # 1 - alpha_bar
        noise = math.sqrt(noise2)
        divergence = _divergence(lambda x: eps_hat(x, t), x, directions, noise)
        return noise * eps_hat(x, t) - noise2 * x, noise * divergence - noise2 * x[0].size

    return slope


def _runge_kutta(slope: Callable[..., tuple[Any, Any]], x: np.ndarray, s: float, h: float) -> tuple[Any, Any]:
    """The changes of x and of the integral of its divergence in one classical Runge-Kutta step of length h."""
    k1, d1 = slope(x, s)
    k2, d2 = slope(x + h / 2 * k1, s + h / 2)
    k3, d3 = slope(x + h / 2 * k2, s + h / 2)
    k4, d4 = slope(x + h * k3, s + h)
    return h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)


def _divergence(
    v: Callable[[np.ndarray], np.ndarray], x: np.ndarray, directions: np.ndarray, scale: float
) -> np.ndarray:
    """The sum of z^T J z over directions z (P, N or 1, H, W, C), J = dv/dx by central differences: (N,).

    v changes over lengths of `scale`, of which the differences take the cube root of the precision.
    """
    h = scale * float(np.finfo(x.dtype).eps) ** (1 / 3)
    total = np.zeros(len(x))
    for z in directions:
        change = z * (v(x + h * z) - v(x - h * z))
        total += np.sum(change, axis=(1, 2, 3), dtype=np.float64) / (2 * h)
    return total


def _axes(x: np.ndarray) -> np.ndarray:
    """The unit vectors of x's axes: (D, 1, H, W, C)."""
    D = x[0].size
    return np.eye(D, dtype=x.dtype).reshape(D, 1, *x.shape[1:])


def _random_signs(x: np.ndarray, probes: int, rng: Any) -> np.ndarray:
    """Random signs over the root of their number, so that the sum over them is a mean: (P, N, H, W, C)."""
    signs = 2.0 * rng.integers(0, 2, (probes, *x.shape)) - 1
    return (signs / math.sqrt(probes)).astype(x.dtype)


def _log_sigma_range(schedule: AnySchedule) -> tuple[float, float]:
    """log(sigma) at the lowest and the highest noise level."""
    if isinstance(schedule, Schedule):
        low, high = sigmas_of(schedule)[[0, -1]]
    elif isinstance(schedule, EDM):
        low, high = schedule.sigma_min, schedule.sigma_max
    else:
        t = schedule.sampling_times(2)[-1]
        low, high = t / (1 - t), MAX_SIGMA
    return math.log(low), math.log(high)
