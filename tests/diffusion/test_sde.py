"""The SDE of a schedule, its reversals, and the Euler-Maruyama method."""

import exact_checks as checks
import numpy as np
import pytest
from small_runs import refused

from minidiff.diffusion.continuous import EDM, Flow
from minidiff.diffusion.exact import exact_model
from minidiff.diffusion.schedule import cosine_schedule, linear_schedule
from minidiff.diffusion.sde import (
    continuous_time,
    euler_maruyama,
    log_sigma_slope,
    reverse_sde,
    score_of,
    ve_sde,
    vp_sde,
)


@pytest.mark.parametrize("run_of", [checks.euler_maruyama_run, checks.euler_maruyama_edm_run])
def test_weak_order_of_euler_maruyama(run_of):
    checks.check_euler_maruyama(run_of)


def test_probability_flow_keeps_quantiles():
    checks.check_probability_flow()


@pytest.mark.parametrize(
    ("schedule", "ts"),
    [
        (linear_schedule(1000), range(400)),
        (checks.even_schedule(200), range(115)),
        (EDM(), np.geomspace(0.05, 1, 201)),
        (Flow(), np.linspace(0.05, 0.5, 201)),
    ],
)
def test_forward_sde_has_the_mean_and_variance_of_x_t(schedule, ts):
    checks.check_forward_sde(schedule, ts)


@pytest.mark.parametrize("schedule", [EDM(), Flow(), linear_schedule(100), cosine_schedule(50)])
def test_slope_is_the_derivative_of_log_sigma(schedule):
    alpha_bar = continuous_time(schedule).alpha_bar
    for t in (0.1, 0.35, 0.9) if isinstance(schedule, Flow) else (0.5, 3.3, 41.7):
        ends = np.log(1 / alpha_bar(np.array([t - 1e-4, t + 1e-4])) - 1) / 2
        np.testing.assert_allclose(log_sigma_slope(schedule, t), (ends[1] - ends[0]) / 2e-4, rtol=1e-5)


def test_timesteps_keep_their_alpha_bar():
    """At whole t, and between two of them the geometric mean of sigma. The slope at a timestep is that below it."""
    schedule = linear_schedule(100)
    real_time, log_sigma = continuous_time(schedule), np.log(1 / schedule.alphas_cumprod - 1) / 2
    np.testing.assert_allclose(real_time.alpha_bar(np.arange(100)), schedule.alphas_cumprod, rtol=1e-12)
    middle = np.log(1 / real_time.alpha_bar(7.5) - 1) / 2
    np.testing.assert_allclose(middle, (log_sigma[7] + log_sigma[8]) / 2, rtol=1e-12)
    np.testing.assert_allclose(log_sigma_slope(schedule, 8), log_sigma[8] - log_sigma[7], rtol=1e-12)
    refused(lambda: real_time.alpha_bar(99.5), match="t must be from 0 to 99")


def test_variance_of_the_two_forms():
    """d sigma^2 / dt of the variance-exploding form; g^2 of the other is that times alpha_bar."""
    t = 0.7
    np.testing.assert_allclose(ve_sde(EDM()).g(t) ** 2, 2 * t, rtol=1e-12)
    np.testing.assert_allclose(vp_sde(EDM()).g(t) ** 2, 2 * t / (1 + t**2), rtol=1e-12)
    np.testing.assert_allclose(vp_sde(EDM()).f(np.ones(2), t), -t / (1 + t**2), rtol=1e-12)
    np.testing.assert_array_equal(ve_sde(EDM()).f(np.ones(2), t), 0)


def test_samples_of_the_reverse_sde_are_of_the_exact_distribution():
    """From exact x_T to SIGMA_MIN."""
    schedule, rng = checks.even_schedule(300), np.random.default_rng(0)
    x0, _ = checks.MIXTURE.sample(2 * checks.N_SAMPLES, rng)
    signal, noise = np.sqrt(schedule.alphas_cumprod), np.sqrt(1 - schedule.alphas_cumprod)
    of_x_T, of_exact = np.split(x0, 2)
    x_T, exact = (signal[t] * x + noise[t] * rng.standard_normal(x.shape) for t, x in ((-1, of_x_T), (0, of_exact)))
    sde = reverse_sde(vp_sde(schedule), score_of(exact_model(checks.MIXTURE, schedule), schedule))
    *_, (t, x) = euler_maruyama(sde, x_T, range(300, -1, -1), lambda: rng.standard_normal(x_T.shape))
    assert t == 0
    assert checks.ks_distance(x.ravel(), exact.ravel()) < checks.REJECTED


def test_score_of_the_exact_model_is_the_exact_score():
    x_t = np.linspace(-2, 2, 6).reshape(6, 1, 1, 1)
    for schedule, t in ((linear_schedule(100, prediction_type="v_prediction"), 30.4), (EDM(), 0.6), (Flow(), 0.3)):
        score = score_of(exact_model(checks.MIXTURE, schedule), schedule)(x_t, t)
        want = checks.MIXTURE.score(x_t, continuous_time(schedule).alpha_bar(t))
        np.testing.assert_allclose(score, want, rtol=1e-9)
