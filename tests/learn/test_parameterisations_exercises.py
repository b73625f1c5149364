"""The solutions of chapter 13 agree with the library's conversions, coefficients, velocities and metrics."""

import numpy as np
import pytest

from minidiff.diffusion import continuous
from minidiff.diffusion.exact import GaussianMixture, exact_model
from minidiff.diffusion.forward import x0_and_eps
from minidiff.diffusion.schedule import cosine_schedule
from minidiff.evaluation import metrics
from minidiff.learn.chapters import parameterisations as chapter


def test_x0_and_eps_of_v():
    schedule = cosine_schedule(prediction_type="v_prediction")
    v, x_t = np.random.default_rng(0).standard_normal((2, 4, 4, 5, 2))
    t = np.array([0, 200, 700, 999])
    ours = chapter.x0_and_eps(v, x_t, t, schedule.alphas_cumprod)
    np.testing.assert_allclose(ours, x0_and_eps(schedule, v, x_t, t), rtol=1e-9, atol=1e-12)


def test_preconditioning():
    sigma = np.array([0.002, 0.3, 1.0, 80.0])
    c_skip, c_out, _, _ = continuous.preconditioning(sigma)
    np.testing.assert_allclose(chapter.preconditioning(sigma, continuous.SIGMA_DATA), (c_skip, c_out), rtol=1e-12)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.95])
def test_marginal_velocity(t):
    rng = np.random.default_rng(0)
    x, points = rng.standard_normal((7, 2)), rng.uniform(-1, 1, (5, 2))
    flow = continuous.Flow()
    x_t = (x / np.hypot(1 - t, t))[:, None, None]  # (7, 1, 1, 2), scaled to DDPM's x_t
    library = exact_model(GaussianMixture(points), flow)(x_t, t)[:, 0, 0]
    np.testing.assert_allclose(chapter.marginal_velocity(x, t, points), library, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [30, 3], ids=("full rank", "fewer images than features"))
def test_frechet_distance(n):
    rng = np.random.default_rng(0)
    f, g = rng.standard_normal((n, 5)) @ rng.standard_normal((5, 5)), rng.standard_normal((40, 5))
    library = metrics.frechet_distance(*metrics.mean_and_covariance(f), *metrics.mean_and_covariance(g))
    # an eigenvalue of 0 has an error of about 1e-15, whose root is 3e-8
    assert chapter.frechet_distance(f, g) == pytest.approx(library, rel=1e-6)
