"""The solutions of chapter 2 are the library's own functions."""

import numpy as np
import pytest

from minidiff.diffusion import forward
from minidiff.diffusion.exact import GaussianMixture
from minidiff.diffusion.schedule import cosine_schedule, linear_schedule
from minidiff.diffusion.steps import p_sample
from minidiff.learn.chapters.two_dimensions import EXERCISES, optimal_denoiser, q_posterior, score


@pytest.mark.parametrize("t", [0, 1, 70, 999])
def test_the_posterior_is_the_librarys_and_that_of_a_ddpm_step(t):
    rng = np.random.default_rng(t)
    x0, x_t, z = rng.standard_normal((3, 4, 6, 5, 3))
    schedule = linear_schedule(prediction_type="sample")
    mean, variance = q_posterior(x0, x_t, t, schedule.betas)
    library_mean, library_variance = forward.q_posterior(schedule, x0, x_t, t)
    np.testing.assert_allclose(mean, library_mean, rtol=1e-12)
    np.testing.assert_allclose(variance, library_variance.item(), rtol=1e-12)
    np.testing.assert_allclose(mean + np.sqrt(variance) * z, p_sample(schedule, x0, x_t, t, z), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("log_snr", [-6, -1, 3])
def test_the_denoiser_and_the_score_are_those_of_the_exact_model(log_snr):
    rng = np.random.default_rng(0)
    images, x_t = rng.uniform(-1, 1, (7, 4, 4, 3)), rng.standard_normal((5, 4, 4, 3))
    alpha_bar = float(1 / (1 + np.exp(-log_snr)))
    mixture = GaussianMixture(images)
    x0_hat, eps_hat = mixture.x0_and_eps(x_t, alpha_bar)
    ours = optimal_denoiser(x_t.reshape(5, -1), alpha_bar, images.reshape(7, -1))
    # exponents reach 1000, whose rounding is 1e-13: so much may the weights differ; the score divides by 0.05
    np.testing.assert_allclose(ours.reshape(x_t.shape), x0_hat, rtol=0, atol=1e-12)
    np.testing.assert_allclose(score(x_t, x0_hat, alpha_bar), mixture.score(x_t, alpha_bar), rtol=0, atol=2e-11)
    np.testing.assert_allclose(score(x_t, x0_hat, alpha_bar), -eps_hat / np.sqrt(1 - alpha_bar), rtol=0, atol=2e-11)


def test_the_denoiser_has_no_nan_where_exp_alone_underflows():
    images = np.random.default_rng(0).uniform(-1, 1, (3, 4000))
    alpha_bar = float(cosine_schedule().alphas_cumprod[500])
    x_t = np.random.default_rng(1).standard_normal((2, 4000)) * 10
    assert np.isfinite(optimal_denoiser(x_t, alpha_bar, images)).all()


def test_the_images_show_the_readers_functions():
    for exercise, wrong in zip(EXERCISES[1:], (lambda x_t, a, images: x_t, lambda x_t, x0_hat, a: -x_t), strict=True):
        assert exercise.image is not None
        shown = exercise.image(exercise.solution)
        assert shown.width > shown.height
        assert np.any(np.asarray(shown) != np.asarray(exercise.image(wrong)))
