"""EDM's stochastic sampler (Karras et al. 2022, algorithm 2), in the paper's own variables, and its noise levels."""

import math

import numpy as np
import pytest

from minidiff.diffusion.continuous import EDM
from minidiff.diffusion.exact import GaussianMixture, exact_model
from minidiff.diffusion.noise_levels import noise_levels, sigmas_of
from minidiff.diffusion.reverse import sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import linear_schedule

MIXTURE = GaussianMixture(np.array([[-0.6, 0.2], [0.5, -0.1]]), 0.2)
SHAPE = (5, 1, 1, 2)
STOCHASTIC = Sampler("heun", clip=None, churn=6.0, churn_interval=(0.05, 50.0), churn_noise=1.003)


class DoubleNoise:
    def __init__(self):
        self.rng = np.random.default_rng(1)

    def standard_normal(self, shape, dtype):
        return self.rng.standard_normal(shape)


def algorithm_2(x, sigmas, rng):
    """x = x0 + sigma eps, from sigmas[0] to the end of the list, by the exact denoiser."""

    def slope(x, sigma):
        alpha_bar = 1 / (1 + sigma**2)
        return (x - MIXTURE.x0_and_eps(np.sqrt(alpha_bar) * x, alpha_bar)[0]) / sigma

    for sigma, sigma_next in zip(sigmas, sigmas[1:], strict=False):
        gamma = min(6.0 / (len(sigmas) - 1), math.sqrt(2) - 1) if 0.05 <= sigma <= 50 else 0
        sigma_hat = (1 + gamma) * sigma
        if gamma:
            z = rng.standard_normal(SHAPE, np.float64)
            x = x + math.sqrt(sigma_hat**2 - sigma**2) * 1.003 * z
        d = slope(x, sigma_hat)
        x_next = x + (sigma_next - sigma_hat) * d
        if sigma_next:
            x_next = x + (sigma_next - sigma_hat) * (d + slope(x_next, sigma_next)) / 2
        x = x_next
    return x


@pytest.mark.parametrize("steps", [8, 30])
def test_heun_with_churn_is_algorithm_2(steps):
    schedule, x_T = EDM(), np.random.default_rng(0).standard_normal(SHAPE)
    model = exact_model(MIXTURE, schedule)
    *_, (_, ours, _) = sample(model, schedule, SHAPE, DoubleNoise(), steps, STOCHASTIC, x_T=x_T)
    sigmas = [*schedule.sampling_times(steps), 0.0]
    want = algorithm_2(x_T * np.sqrt(1 + sigmas[0] ** 2), sigmas, DoubleNoise())
    np.testing.assert_allclose(ours, want, rtol=1e-9, atol=1e-9)


def test_churn_does_not_exceed_the_largest_sigma():
    schedule = linear_schedule()
    levels = noise_levels(schedule, 20, Sampler("euler", churn=100.0))
    sigma, largest = sigmas_of(levels.schedule), sigmas_of(schedule)[-1]
    assert levels.sigma_hat is not None and levels.sigma_hat[-1] == pytest.approx(largest)
    np.testing.assert_allclose(levels.sigma_hat, np.minimum(sigma * math.sqrt(2), largest), rtol=1e-12)


def test_the_last_steps_alone_have_the_churn_of_all():
    all_steps = noise_levels(linear_schedule(), 20, Sampler("heun", churn=5.0))
    last = all_steps.from_step(12)
    assert last.sigma_hat is not None and all_steps.sigma_hat is not None
    np.testing.assert_array_equal(last.sigma_hat, all_steps.sigma_hat[:8])
