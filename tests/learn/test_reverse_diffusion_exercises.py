"""The solutions of chapter 4 are the library's own steps."""

import numpy as np
import pytest

from minidiff.diffusion.exact import GaussianMixture, exact_model
from minidiff.diffusion.schedule import cosine_schedule, linear_schedule
from minidiff.diffusion.sde import continuous_time, probability_flow, score_of, vp_sde
from minidiff.diffusion.steps import ddim_step, p_sample
from minidiff.learn.chapters import reverse_diffusion as chapter

RNG = np.random.default_rng(0)
SCHEDULES = (linear_schedule(), cosine_schedule())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=("linear", "cosine"))
@pytest.mark.parametrize("t", [0, 1, 300, 998])
def test_ddpm_step(schedule, t):
    eps_hat, x_t, z = RNG.standard_normal((3, 2, 4, 5, 3))
    ours = chapter.p_sample(eps_hat, x_t, t, z, schedule.betas)
    np.testing.assert_allclose(ours, p_sample(schedule, eps_hat, x_t, t, z), rtol=1e-9, atol=1e-9 * np.abs(ours).max())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=("linear", "cosine"))
@pytest.mark.parametrize(("t", "t_prev", "eta"), [(998, 500, 0.0), (500, 499, 1.0), (300, 10, 0.3), (0, -1, 1.0)])
def test_ddim_step(schedule, t, t_prev, eta):
    eps_hat, x_t, z = RNG.standard_normal((3, 2, 4, 5, 3))
    ours = chapter.ddim_step(eps_hat, x_t, t, t_prev, eta, z, schedule.alphas_cumprod)
    library = ddim_step(schedule, eps_hat, x_t, t, t_prev, eta, z)
    np.testing.assert_allclose(ours, library, rtol=1e-9, atol=1e-9 * np.abs(library).max())


def test_ddim_with_eta_1_is_ddpm():
    eps_hat, x_t, z = RNG.standard_normal((3, 2, 4, 5, 3))
    schedule = linear_schedule()
    ddim = chapter.ddim_step(eps_hat, x_t, 400, 399, 1.0, z, schedule.alphas_cumprod)
    np.testing.assert_allclose(ddim, chapter.p_sample(eps_hat, x_t, 400, z, schedule.betas), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [5.0, 300.25, 990.0])
def test_probability_flow(t):
    schedule = linear_schedule()
    model = exact_model(GaussianMixture(np.array([[-0.5], [0.4]]), 0.2), schedule)
    x_t = RNG.standard_normal((6, 1, 1, 1))
    sde, alpha_bar = vp_sde(schedule), float(continuous_time(schedule).alpha_bar(t))
    ours = chapter.probability_flow(x_t, model(x_t, t), alpha_bar, sde.g(t) ** 2)
    np.testing.assert_allclose(ours, probability_flow(sde, score_of(model, schedule))(x_t, t), rtol=1e-9, atol=1e-12)


def test_order_of_a_power_law():
    n = np.array([10.0, 30, 70, 200])
    assert chapter.order(n, 5 * n**-2.5) == pytest.approx(2.5, abs=1e-9)


@pytest.mark.parametrize("title", ["DDPM step", "DDIM step"])
def test_the_image_ends_at_one_of_the_sixteen(title):
    """With the solution as the answer the last image of the strip is as sharp as the data."""
    exercise = next(e for e in chapter.EXERCISES if e.title == title)
    assert exercise.image is not None
    pixels = np.asarray(exercise.image(exercise.solution), float)
    noise, last = pixels[:90, :110], pixels[:90, -110:]
    assert np.abs(np.diff(noise, axis=1)).mean() > 2 * np.abs(np.diff(last, axis=1)).mean()
