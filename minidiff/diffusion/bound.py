"""Bits per dimension: the variational bound that DDPM's loss is derived from (Ho et al. 2020, eq. 5).

-log p(x0) <= L_T + sum over t > 1 of L_{t-1} + L_0, with DDPM's t from 1 to T. With t from 0 to T - 1, as here:

    prior     KL(q(x_{T-1} | x0) || N(0, I)), which needs no model
    steps     KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)) for t = T-1 ... 1
    decoder   -log p(x0 | x_t) at t = 0, where p is a Gaussian discretised to the 256 values of a byte (section 3.3)

Both Gaussians of a step have the mean of q_posterior, one given x0, the other given the model's estimate x0_hat.
"""

import math
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from minidiff.diffusion.forward import q_posterior, q_sample, x0_and_eps
from minidiff.diffusion.model import Model, evaluate, evaluate_with_variance
from minidiff.diffusion.noise_levels import NoiseLevels, max_steps, noise_levels
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule, Schedule
from minidiff.diffusion.steps import clipped, reverse_variance
from minidiff.engine.gaussian import byte_nll, gaussian_kl
from minidiff.engine.rng import Rng
from minidiff.errors import MinidiffError

DDPM = Sampler("ddpm", variance="fixed_large")


class Bound(NamedTuple):
    """The three parts of the bound, bits per dimension of each image: (N,) each."""

    prior: np.ndarray
    steps: np.ndarray
    decoder: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """The upper bound on -log2 p(x0) per dimension, (N,)."""
        return self.prior + self.steps + self.decoder


def bits_per_dim(
    model: Model,
    schedule: AnySchedule,
    x0: np.ndarray,
    rng: Rng,
    cond: Any = None,
    evaluations: int | None = None,
    steps: int | None = None,
    sampler: Sampler = DDPM,
) -> Bound:
    """The bound for images x0, float (N, H, W, C), whose values are bytes scaled to [-1, 1].

    evaluations  model evaluations at most for the KL terms of the steps; the decoder takes one more. The steps are
                 divided into that many intervals, shorter ones at low noise, where the terms are larger; one random
                 step of each, another one for each image, is weighted by the interval's length, which makes the
                 estimate unbiased. None: every step is evaluated
    steps        number of sampling steps; None: the most that the schedule has
    sampler      its variance and clip count. With "fixed_small" the decoder has the variance beta tilde of t = 1, as in
                 DDPM, since that of t = 0 is 0; with "fixed_large" beta of t = 0; with "learned_range" one between both

    rng draws the noise and the steps. Raises MinidiffError for fewer than two steps, or a sampler other than ddpm.
    """
    if sampler.name != "ddpm" or not sampler.clean_end:
        raise MinidiffError(f"sampler {sampler.name}: the bound is defined for ddpm with clean_end alone")
    levels = noise_levels(schedule, max_steps(schedule, sampler) if steps is None else steps, sampler)
    T, N = len(levels.ts), len(x0)
    if T < 2:
        raise MinidiffError(f"the bound needs at least 2 steps, not {T}")
    kls = np.zeros(N)
    for start, end in pairwise(range(1, T + 1) if evaluations is None else _interval_bounds(T, evaluations)):
        i = start + np.floor(rng.random(N) * (end - start)).astype(np.int64)  # (N,), start ... end - 1
        x_t, x0_hat, variance = _estimate(model, levels, x0, i, rng, cond, sampler)
        kls += (end - start) * _step_kl(levels.schedule, x0, x0_hat, x_t, i, variance)
    _, x0_hat, variance = _estimate(model, levels, x0, np.zeros(N, np.int64), rng, cond, sampler)
    parts = _prior_kl(levels.schedule, x0), kls, _image_mean(byte_nll(x0, x0_hat, np.sqrt(variance))[0])
    return Bound(*(part / math.log(2) for part in parts))


def _interval_bounds(T: int, intervals: int) -> list[int]:
    """The first steps of at most so many intervals of 1 ... T - 1, whose lengths grow geometrically, and T."""
    return np.unique(np.geomspace(1, T, intervals + 1).round().astype(int)).tolist()


def _estimate(
    model: Model, levels: NoiseLevels, x0: np.ndarray, i: np.ndarray, rng: Rng, cond: Any, sampler: Sampler
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At steps i (N,): x_t, with noise from rng, the model's estimate x0_hat, clipped, and its reverse variance.

    All are float64, (N, H, W, C); a fixed variance is (N, 1, 1, 1).
    """
    x_t = q_sample(levels.schedule, x0, i, rng.standard_normal(x0.shape, dtype=np.float32).astype(x0.dtype))
    evaluated = evaluate_with_variance if sampler.variance == "learned_range" else evaluate
    prediction, C = evaluated(model, x_t, levels.ts[len(levels.ts) - 1 - i], cond), x0.shape[-1]
    x0_hat, _ = x0_and_eps(levels.schedule, prediction[..., :C], x_t, i)
    x_t, v = x_t.astype(np.float64), prediction[..., C:].astype(np.float64)
    variance = reverse_variance(levels.schedule, v, x_t, i, sampler.variance)
    return x_t, clipped(x0_hat, sampler.clip).astype(np.float64), variance


def _prior_kl(schedule: Schedule, x0: np.ndarray) -> np.ndarray:
    """KL(q(x_{T-1} | x0) || N(0, I)) at the highest noise level, nats per dimension: (N,)."""
    alpha_bar = schedule.alphas_cumprod[-1]
    x0_squared = _image_mean(np.square(x0, dtype=np.float64))
    return 0.5 * (alpha_bar * x0_squared - alpha_bar - math.log(1 - alpha_bar))


def _step_kl(schedule: Schedule, x0, x0_hat, x_t: Any, i: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)) at steps i, nats per dimension: (N,)."""
    mean, beta_tilde = q_posterior(schedule, x0.astype(np.float64), x_t, i)
    mean_hat, _ = q_posterior(schedule, x0_hat, x_t, i)
    return _image_mean(gaussian_kl(mean, beta_tilde, mean_hat, variance))


def _image_mean(a: np.ndarray) -> np.ndarray:
    """The mean over all values of each image: (N, ...) -> (N,)."""
    return a.reshape(len(a), -1).mean(1)
