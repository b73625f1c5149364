"""Forward diffusion: q_sample, the posterior and the conversions, against independent formulas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidiff.diffusion import forward as f
from minidiff.diffusion.schedule import (
    Schedule,
    cosine_schedule,
    linear_schedule,
    rescale_zero_terminal_snr,
    sigmoid_schedule,
)
from minidiff.errors import MinidiffError

LINEAR = linear_schedule()
SHAPE = (4, 3, 5, 2)  # N, H, W, C
T_4 = np.array([0, 1, 500, 999])


def normal(seed, shape=SHAPE, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def test_q_sample_is_the_chain_of_single_steps():
    """DDPM eq. 2, t + 1 times, and eq. 4 with eps the accumulated noise of the chain."""
    schedule = linear_schedule(20, 0.01, 0.3)
    x0 = normal(0)
    x_t, accumulated = x0, np.zeros(SHAPE)
    for t in range(20):
        z = normal(t + 1)
        x_t = np.sqrt(1 - schedule.betas[t]) * x_t + np.sqrt(schedule.betas[t]) * z  # eq. 2
        accumulated = np.sqrt(1 - schedule.betas[t]) * accumulated + np.sqrt(schedule.betas[t]) * z
        eps = accumulated / np.sqrt(1 - schedule.alphas_cumprod[t])
        np.testing.assert_allclose(f.q_sample(schedule, x0, t, eps), x_t, atol=1e-14)  # 20 steps of 2e-16


def test_every_image_has_its_own_t():
    x0, eps = normal(0), normal(1)
    x_t = f.q_sample(LINEAR, x0, T_4, eps)
    assert x_t.shape == SHAPE
    for n, t in enumerate(T_4):
        np.testing.assert_array_equal(x_t[n], f.q_sample(LINEAR, x0[n : n + 1], int(t), eps[n : n + 1])[0])


def test_one_image_broadcasts_over_many_t():
    x0, eps = normal(0, (1, 3, 5, 1)), normal(1, (1, 3, 5, 1))
    assert f.q_sample(LINEAR, x0, T_4, eps).shape == (4, 3, 5, 1)


@pytest.mark.parametrize("schedule", [LINEAR, cosine_schedule(100), sigmoid_schedule(100)])
def test_q_posterior_is_bayes(schedule):
    """q(x_{t-1}|x_t,x0) goes as q(x_t|x_{t-1}) q(x_{t-1}|x0): precisions add, and means weighted by them."""
    x0, x_t = normal(0), normal(1)
    for t in (1, 2, len(schedule) // 2, len(schedule) - 1):
        beta, alpha_bar_prev = schedule.betas[t], schedule.alphas_cumprod[t - 1]
        precision = (1 - beta) / beta + 1 / (1 - alpha_bar_prev)
        weighted = np.sqrt(1 - beta) / beta * x_t + np.sqrt(alpha_bar_prev) / (1 - alpha_bar_prev) * x0
        mean, variance = f.q_posterior(schedule, x0, x_t, t)
        # 1 - alpha_bar loses digits where alpha_bar is near 1: 1e-16 / 1e-4, a few times.
        np.testing.assert_allclose(variance, 1 / precision, rtol=1e-11)
        np.testing.assert_allclose(mean, weighted / precision, rtol=1e-11, atol=1e-11)


def test_q_posterior_at_the_first_step_is_x0_itself():
    x0 = normal(0)
    mean, variance = f.q_posterior(LINEAR, x0, normal(1), 0)
    np.testing.assert_allclose(mean, x0, atol=1e-14)
    assert variance.shape == (1, 1, 1, 1) and variance == 0


@pytest.mark.parametrize("schedule", [LINEAR, cosine_schedule(), sigmoid_schedule()])
def test_forward_then_posterior_is_the_marginal_one_step_earlier(schedule):
    """x_t of eq. 4 put into eq. 7 has the mean and variance of eq. 4 at t - 1, for every t."""
    t = np.arange(1, len(schedule))
    one, zero = np.ones((len(t), 1)), np.zeros((len(t), 1))
    signal = f.q_sample(schedule, one, t, zero)  # x0 = 1 without noise gives the mean's factor
    mean, variance = f.q_posterior(schedule, one, signal, t)
    coef_x_t, _ = f.q_posterior(schedule, zero, one, t)
    alpha_bar, alpha_bar_prev = schedule.alphas_cumprod[t, None], schedule.alphas_cumprod[t - 1, None]
    np.testing.assert_allclose(mean, np.sqrt(alpha_bar_prev), rtol=1e-11)
    np.testing.assert_allclose(coef_x_t**2 * (1 - alpha_bar) + variance, 1 - alpha_bar_prev, rtol=1e-11)


def test_the_posterior_chain_has_the_marginal_of_q_sample():
    """50,000 values, sampled from the posterior from t = 9 to 3, are distributed as q(x_3|x0)."""
    schedule, n = linear_schedule(10, 0.02, 0.4), 50_000
    rng = np.random.default_rng(0)
    x0 = np.full((n, 1), 0.7)
    x = f.q_sample(schedule, x0, 9, rng.standard_normal((n, 1)))
    for t in range(9, 3, -1):
        mean, variance = f.q_posterior(schedule, x0, x, t)
        x = mean + np.sqrt(variance) * rng.standard_normal((n, 1))
    alpha_bar = schedule.alphas_cumprod[3]
    # Five standard errors: of the mean sqrt(v / n), of the variance v sqrt(2 / n).
    assert abs(x.mean() - 0.7 * np.sqrt(alpha_bar)) < 5 * np.sqrt((1 - alpha_bar) / n)
    assert abs(x.var() / (1 - alpha_bar) - 1) < 5 * np.sqrt(2 / n)


@given(
    seed=st.integers(0, 2**32 - 1),
    t=st.integers(0, 999),
    name=st.sampled_from(["linear", "cosine", "sigmoid"]),
)
def test_conversions_go_round(seed, t, name):
    schedule = {"linear": linear_schedule, "cosine": cosine_schedule, "sigmoid": sigmoid_schedule}[name]()
    x0, eps = normal(seed), normal(seed + 1)
    x_t = f.q_sample(schedule, x0, t, eps)
    v = f.v_from_x0_eps(schedule, x0, eps, t)
    # Dividing by sqrt(alpha_bar) magnifies the rounding of x_t (1e-15 for |x_t| < 8); so does sqrt(1 - alpha_bar).
    alpha_bar = schedule.alphas_cumprod[t]
    atol_x0, atol_eps = 4e-15 / np.sqrt(alpha_bar), 4e-15 / np.sqrt(1 - alpha_bar)
    np.testing.assert_allclose(f.x0_from_eps(schedule, eps, x_t, t), x0, rtol=0, atol=atol_x0)
    np.testing.assert_allclose(f.eps_from_x0(schedule, x0, x_t, t), eps, rtol=0, atol=atol_eps)
    np.testing.assert_allclose(f.x0_from_v(schedule, v, x_t, t), x0, rtol=0, atol=4e-15)
    np.testing.assert_allclose(f.eps_from_v(schedule, v, x_t, t), eps, rtol=0, atol=4e-15)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_x0_and_eps_undoes_target(prediction_type):
    schedule = linear_schedule(prediction_type=prediction_type)
    x0, eps = normal(0), normal(1)
    x_t = f.q_sample(schedule, x0, T_4, eps)
    prediction = f.target(schedule, x0, T_4, eps)
    x0_hat, eps_hat = f.x0_and_eps(schedule, prediction, x_t, T_4)
    np.testing.assert_allclose(x0_hat, x0, atol=1e-12)  # 4e-15 / sqrt(4e-5), as above
    np.testing.assert_allclose(eps_hat, eps, atol=1e-12)


def test_targets_by_name():
    x0, eps = normal(0), normal(1)
    betas = np.array([0.36])  # alpha_bar 0.64, the coefficients are 0.8 and 0.6
    assert f.target(Schedule(betas), x0, 0, eps) is eps
    assert f.target(Schedule(betas, "sample"), x0, 0, eps) is x0
    np.testing.assert_allclose(f.target(Schedule(betas, "v_prediction"), x0, 0, eps), 0.8 * eps - 0.6 * x0, atol=1e-14)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_at_zero_terminal_snr_nothing_is_divided_by_zero(prediction_type):
    schedule = rescale_zero_terminal_snr(linear_schedule(10, prediction_type=prediction_type))
    x0, eps = normal(0), normal(1)
    x_t = f.q_sample(schedule, x0, 9, eps)
    np.testing.assert_array_equal(x_t, eps)
    x0_hat, eps_hat = f.x0_and_eps(schedule, f.target(schedule, x0, 9, eps), x_t, 9)
    np.testing.assert_array_equal(x0_hat, x0)
    np.testing.assert_array_equal(eps_hat, eps)


def test_float32_stays_float32():
    x0, eps = normal(0, dtype=np.float32), normal(1, dtype=np.float32)
    x_t = f.q_sample(LINEAR, x0, T_4, eps)
    results = [x_t, *f.q_posterior(LINEAR, x0, x_t, T_4), *f.x0_and_eps(LINEAR, eps, x_t, T_4)]
    assert all(a.dtype == np.float32 for a in results)
    # The coefficients are rounded once, from float64; then two products and a sum.
    exact = f.q_sample(LINEAR, x0.astype(np.float64), T_4, eps.astype(np.float64))
    np.testing.assert_allclose(x_t, exact, rtol=0, atol=4 * 2**-24 * 4)  # |x| < 4


def test_wrong_t_and_raw_bytes_are_refused():
    x0, eps = normal(0), normal(1)
    with pytest.raises(MinidiffError, match="from 0 to 999"):
        f.q_sample(LINEAR, x0, np.array([0, 1, 2, 1000]), eps)
    with pytest.raises(MinidiffError, match="from 0 to 999"):
        f.q_posterior(LINEAR, x0, eps, -1)
    with pytest.raises(MinidiffError, match="floats from -1 to 1, not uint8"):
        f.q_sample(LINEAR, np.zeros(SHAPE, np.uint8), T_4, eps)
