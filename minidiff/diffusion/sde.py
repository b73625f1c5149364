"""Diffusion in continuous time: the forward SDE, the reverse SDE and the probability-flow ODE.

Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, "Score-Based Generative Modeling through Stochastic Differential
Equations", 2021 (arXiv 2011.13456); equation numbers are theirs. Every schedule here is x_t = sqrt(alpha_bar) x0 +
sqrt(1 - alpha_bar) eps, so it implies one SDE of x_t, and the samplers are solvers of its two reversals:

    forward            dx = f(x, t) dt + g(t) dw                                   (eq. 5)
    reverse            dx = (f(x, t) - g(t)^2 score(x, t)) dt + g(t) dw            (eq. 6), for falling t
    probability flow   dx = (f(x, t) - g(t)^2 score(x, t) / 2) dt                  (eq. 13)

t is a real number: the schedule's own time, sigma for EDM, and for a schedule over timesteps their index, between
which log sigma is linear. sigma = sqrt((1 - alpha_bar) / alpha_bar).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from minidiff.diffusion.continuous import EDM
from minidiff.diffusion.forward import x0_and_eps
from minidiff.diffusion.model import evaluate
from minidiff.diffusion.noise_levels import sigmas_of
from minidiff.diffusion.schedule import AnySchedule, Schedule
from minidiff.errors import MinidiffError

Score = Callable[[np.ndarray, float], np.ndarray]


class SDE(NamedTuple):
    """dx = f(x, t) dt + g(t) dw: the drift f, an array of x's shape, and the diffusion coefficient g, a number."""

    f: Callable[[np.ndarray, float], np.ndarray]
    g: Callable[[float], float]


class Interpolated:
    """A schedule over timesteps at real t from 0 to T - 1: log sigma is linear between two timesteps."""

    def __init__(self, schedule: Schedule):
        self.prediction_type = schedule.prediction_type
        self.log_sigmas = np.log(sigmas_of(schedule))  # (T,), rising

    def alpha_bar(self, t: Any) -> np.ndarray:
        """alpha_bar at t, in t's shape. Raises MinidiffError for a t out of range."""
        t, last = np.asarray(t, np.float64), len(self.log_sigmas) - 1
        if not np.all((t >= 0) & (t <= last)):  # NaN is not
            raise MinidiffError(f"t must be from 0 to {last}, not {t.ravel()[:8].tolist()}")
        return 1 / (1 + np.exp(2 * np.interp(t, np.arange(last + 1), self.log_sigmas)))


def continuous_time(schedule: AnySchedule) -> Any:
    """The schedule with an alpha_bar(t) for real t: EDM and rectified flow as they are."""
    return Interpolated(schedule) if isinstance(schedule, Schedule) else schedule


def log_sigma_slope(schedule: AnySchedule, t: float) -> float:
    """d log(sigma) / dt. At a timestep, where the slope changes, it is that of the interval below, t - 1 to t."""
    if isinstance(schedule, EDM):
        return 1 / t  # sigma = t
    if not isinstance(schedule, Schedule):
        return 1 / (t * (1 - t))  # rectified flow: sigma = t / (1 - t)
    below = max(math.ceil(t), 1) - 1
    low, high = np.log(sigmas_of(schedule)[below : below + 2])
    return float(high - low)


def vp_sde(schedule: AnySchedule) -> SDE:
    """The SDE of x_t, variance preserving: f = -beta(t) x / 2 and g = sqrt(beta(t)) (eq. 11).

    beta(t) = -d log(alpha_bar) / dt = 2 (1 - alpha_bar) d log(sigma) / dt; with rectified flow it is infinite at t = 1.
    """
    alpha_bar = continuous_time(schedule).alpha_bar

    def beta(t: float) -> float:
        return 2 * (1 - float(alpha_bar(t))) * log_sigma_slope(schedule, t)

    return SDE(lambda x, t: -0.5 * beta(t) * x, lambda t: math.sqrt(beta(t)))


def ve_sde(schedule: AnySchedule) -> SDE:
    """The SDE of x = x_t / sqrt(alpha_bar) = x0 + sigma eps, variance exploding: f = 0, g = sqrt(d sigma^2/dt) (eq. 9).

    Its score at x is sqrt(alpha_bar) times that of x_t at sqrt(alpha_bar) x.
    """
    alpha_bar = continuous_time(schedule).alpha_bar

    def g(t: float) -> float:
        sigma2 = 1 / float(alpha_bar(t)) - 1
        return math.sqrt(2 * sigma2 * log_sigma_slope(schedule, t))

    return SDE(lambda x, t: np.zeros_like(x), g)


def reverse_sde(sde: SDE, score: Score) -> SDE:
    """The SDE that, from falling t, has the same distributions p(x_t) as `sde` (eq. 6)."""
    return SDE(lambda x, t: sde.f(x, t) - sde.g(t) ** 2 * score(x, t), sde.g)


def probability_flow(sde: SDE, score: Score) -> Callable[[np.ndarray, float], np.ndarray]:
    """dx/dt of the ODE that has the same distributions p(x_t) as `sde` (eq. 13)."""
    return lambda x, t: sde.f(x, t) - 0.5 * sde.g(t) ** 2 * score(x, t)


def eps_of(model: Callable[..., Any], schedule: AnySchedule, cond: Any = None) -> Score:
    """eps_hat(x_t, t) of a model, from its prediction: x_t is (N, H, W, C), t a real number."""
    real_time = continuous_time(schedule)

    def eps_hat(x_t: np.ndarray, t: float) -> np.ndarray:
        return x0_and_eps(real_time, evaluate(model, x_t, np.full(len(x_t), t), cond), x_t, t)[1]

    return eps_hat


def score_of(model: Callable[..., Any], schedule: AnySchedule, cond: Any = None) -> Score:
    """score(x_t, t) = -eps_hat / sqrt(1 - alpha_bar), the model's estimate of grad log p(x_t)."""
    alpha_bar, eps_hat = continuous_time(schedule).alpha_bar, eps_of(model, schedule, cond)
    return lambda x_t, t: -eps_hat(x_t, t) / math.sqrt(1 - float(alpha_bar(t)))


def euler_maruyama(
    sde: SDE, x: np.ndarray, ts: Iterable[float], fresh_noise: Callable[[], np.ndarray]
) -> Iterator[tuple[float, np.ndarray]]:
    """The Euler-Maruyama method along ts: x + f(x, t) dt + g(t) sqrt(|dt|) z; yields (t, x) after every step.

    ts rises for a forward SDE and falls for `reverse_sde`. fresh_noise() is standard normal, of x's shape.
    """
    for t, t_next in pairwise(ts):
        dt = t_next - t
        x = x + sde.f(x, t) * dt + sde.g(t) * math.sqrt(abs(dt)) * fresh_noise()
        yield t_next, x
