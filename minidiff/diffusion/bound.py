"""How many bits a picture costs: the variational bound that DDPM's loss comes from (Ho et al. 2020, eq. 5).

-log p(x0) <= L_T + sum over t > 1 of L_{t-1} + L_0, in DDPM's counting of t, and in ours, from 0:

    prior     KL(q(x_{T-1} | x0) || N(0, 1)), which needs no model
    steps     KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)) for t = T-1 ... 1
    decoder   -log p(x0 | x_0), where p is a Gaussian cut into the 256 levels that a byte has (section 3.3)

Both Gaussians of a step have the mean that q_posterior gives, once of x0 and once of the model's guess at it.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from minidiff.diffusion.forward import at, q_posterior, q_sample, x0_and_eps
from minidiff.diffusion.noise_levels import NoiseLevels, max_steps, noise_levels
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule, Schedule
from minidiff.diffusion.steps import clipped
from minidiff.engine.tensor import no_grad
from minidiff.errors import MinidiffError

DDPM = Sampler("ddpm", variance="fixed_large")


class Bound(NamedTuple):
    """The three parts of the bound, bits per dimension, (N,) each: one number a picture."""

    prior: np.ndarray
    steps: np.ndarray
    decoder: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """What a picture costs at most, (N,)."""
        return self.prior + self.steps + self.decoder


def bits_per_dim(
    model: Callable[..., Any],
    schedule: AnySchedule,
    x0: np.ndarray,
    rng: Any,
    cond: Any = None,
    asks: int | None = None,
    steps: int | None = None,
    sampler: Sampler = DDPM,
) -> Bound:
    """The bound for pictures x0, float (N, H, W, C), made of bytes: each number one of the 256 in [-1, 1].

    asks     at how many of the steps the model is asked at most, of each picture at others. The walk is cut into
             stretches, short ones near the picture, where a step costs most; a random step of each stands for all
             of it, so that the estimate has no bias. None: at all of them
    steps    of the walk; None: the longest there is
    sampler  how it walks: variance and clip count. With "fixed_small", step 0 has the variance of step 1, as in DDPM

    rng draws the noise and which steps. Raises MinidiffError for a walk of fewer than two steps or another sampler.
    """
    if sampler.name != "ddpm" or not sampler.clean_end:
        raise MinidiffError(f"sampler {sampler.name}: the bound is that of ddpm, to the clean end")
    way = noise_levels(schedule, max_steps(schedule, sampler) if steps is None else steps, sampler)
    T, N = len(way.ts), len(x0)
    if T < 2:
        raise MinidiffError("the bound needs a walk of two steps or more")
    kls = np.zeros(N)
    for first, after in pairwise(range(1, T + 1) if asks is None else _geometric(T, asks)):
        i = first + np.floor(rng.random(N) * (after - first)).astype(np.int64)  # (N,), first ... after - 1
        x_t, x0_hat = _guess(model, way, x0, i, rng, cond, sampler)
        kls += (after - first) * _step(way.schedule, x0, x0_hat, x_t, i, sampler.variance)
    _, x0_hat = _guess(model, way, x0, np.zeros(N, np.int64), rng, cond, sampler)
    parts = _prior(way.schedule, x0), kls, _decoder(way.schedule, x0, x0_hat, sampler.variance)
    return Bound(*(part / math.log(2) for part in parts))


def _geometric(T: int, stretches: int) -> list[int]:
    """Where up to that many stretches of 1 ... T - 1 begin, each longer than the last by one factor; and T."""
    return np.unique(np.geomspace(1, T, stretches + 1).round().astype(int)).tolist()


def _guess(
    model: Callable[..., Any], way: NoiseLevels, x0: np.ndarray, i: np.ndarray, rng: Any, cond: Any, sampler: Sampler
) -> tuple[np.ndarray, np.ndarray]:
    """x_t, drawn for steps i (N,) of the walk, and what the model makes of it: x0_hat."""
    x_t = q_sample(way.schedule, x0, i, rng.standard_normal(x0.shape, dtype=np.float32).astype(x0.dtype))
    extras = {} if cond is None else {"cond": cond}
    with no_grad():
        prediction = model(x_t, way.ts[len(way.ts) - 1 - i], **extras)
    prediction = prediction.numpy() if hasattr(prediction, "numpy") else prediction
    x0_hat, _ = x0_and_eps(way.schedule, prediction, x_t, i)
    return x_t.astype(np.float64), clipped(x0_hat, sampler.clip).astype(np.float64)


def _prior(schedule: Schedule, x0: np.ndarray) -> np.ndarray:
    """KL(q(x_T | x0) || N(0, I)) at the highest noise level, nats per dimension: (N,)."""
    alpha_bar = schedule.alphas_cumprod[-1]
    x0_squared = _mean(np.square(x0, dtype=np.float64))
    return 0.5 * (alpha_bar * x0_squared - alpha_bar - math.log(1 - alpha_bar))


def _step(schedule: Schedule, x0, x0_hat, x_t: Any, i: np.ndarray, variance: str) -> np.ndarray:
    """The KL divergence of two Gaussians of q_posterior's, nats per dimension: (N,)."""
    mean, beta_tilde = q_posterior(schedule, x0.astype(np.float64), x_t, i)
    mean_hat, _ = q_posterior(schedule, x0_hat, x_t, i)
    sigma2 = beta_tilde if variance == "fixed_small" else at(schedule.betas, i, x_t)  # (N, 1, 1, 1)
    ratio = beta_tilde / sigma2
    return 0.5 * _mean(ratio - 1 - np.log(ratio) + (mean - mean_hat) ** 2 / sigma2)


def _decoder(schedule: Schedule, x0: np.ndarray, x0_hat: np.ndarray, variance: str) -> np.ndarray:
    """-log of the Gaussian's mass between the middles of neighbouring levels (DDPM eq. 13), nats per dimension: (N,).

    The lowest level also has all that is below it, the highest all that is above.
    """
    sigma = math.sqrt(schedule.posterior_variance[1] if variance == "fixed_small" else schedule.betas[0])
    level = np.rint(x0.astype(np.float64) * 127.5 + 127.5)
    low, high = (((level + side - 127.5) / 127.5 - x0_hat) / sigma for side in (-0.5, 0.5))
    low, high = np.where(level == 0, -np.inf, low), np.where(level == 255, np.inf, high)
    # to the right of the middle both are near 1, and little would be left of their difference: there it is mirrored
    right = low + high > 0
    low, high = np.where(right, -high, low), np.where(right, -low, high)
    mass = 0.5 * (_erfc(-high / math.sqrt(2)) - _erfc(-low / math.sqrt(2)))
    return -_mean(np.log(mass.clip(np.finfo(np.float64).tiny)))  # beyond 37 deviations no float is small enough


_erfc = np.vectorize(math.erfc, otypes=[np.float64])  # NumPy has none


def _mean(a: np.ndarray) -> np.ndarray:
    """Over all numbers of each picture: (N, ...) -> (N,)."""
    return a.reshape(len(a), -1).mean(1)
