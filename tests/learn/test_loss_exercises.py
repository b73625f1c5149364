"""The solutions of chapter 3 agree with the library's training loss and with the terms of its bound."""

import numpy as np
import pytest

from minidiff.diffusion.forward import eps_from_x0, q_posterior
from minidiff.diffusion.loss import training_loss
from minidiff.diffusion.schedule import cosine_schedule, linear_schedule
from minidiff.engine.backend import get_backend
from minidiff.engine.gaussian import gaussian_kl
from minidiff.engine.tensor import Tensor
from minidiff.learn.chapters import loss as chapter

SCHEDULES = (linear_schedule(), cosine_schedule())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=("linear", "cosine"))
def test_noise_prediction_loss(schedule):
    rng = np.random.default_rng(0)
    x0, eps = rng.standard_normal((2, 3, 4, 5, 2))
    t = np.array([0, 400, 990])
    ours = chapter.noise_prediction_loss(lambda x_t, t: np.sin(x_t), x0, t, eps, schedule.alphas_cumprod)
    model = lambda x_t, t: Tensor(np.sin(x_t), get_backend("numpy"))  # noqa: E731
    assert ours == pytest.approx(float(training_loss(model, schedule, x0, t, eps).numpy()), rel=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=("linear", "cosine"))
def test_bound_weight_is_that_of_the_kl_divergence(schedule):
    rng = np.random.default_rng(0)
    x0, x0_hat, x_t = rng.standard_normal((3, 4, 4, 5, 2))
    t = np.array([1, 50, 500, 990])
    mean, beta_tilde = q_posterior(schedule, x0, x_t, t)
    mean_hat, _ = q_posterior(schedule, x0_hat, x_t, t)
    kl = gaussian_kl(mean, beta_tilde, mean_hat, beta_tilde).mean((1, 2, 3))
    error = eps_from_x0(schedule, x0, x_t, t) - eps_from_x0(schedule, x0_hat, x_t, t)
    np.testing.assert_allclose(
        chapter.bound_weight(t, schedule.alphas_cumprod) * np.mean(error**2, (1, 2, 3)), kl, rtol=1e-9
    )
