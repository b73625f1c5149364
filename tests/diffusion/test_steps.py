"""Single steps of reverse diffusion, and what they refuse."""

import numpy as np
import pytest

from minidiff.diffusion import forward, steps
from minidiff.diffusion.schedule import linear_schedule, rescale_zero_terminal_snr
from minidiff.errors import MinidiffError

LINEAR = linear_schedule()
SHAPE = (2, 3, 5, 1)  # N, H, W, C


def normal(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("t", [1, 500, 999])
def test_p_sample_with_the_exact_noise_samples_the_posterior(t):
    x0, eps, z = normal(0).clip(-1, 1), normal(1), normal(2)
    x_t = forward.q_sample(LINEAR, x0, t, eps)
    mean, variance = forward.q_posterior(LINEAR, x0, x_t, t)
    # x0_hat is off by the rounding of x_t over sqrt(alpha_bar), but weighs less than that root: 16 roundings of 1.
    x_prev = steps.p_sample(LINEAR, eps, x_t, t, z)
    np.testing.assert_allclose(x_prev, mean + np.sqrt(variance) * z, rtol=0, atol=1e-6)
    x_prev = steps.p_sample(LINEAR, eps, x_t, t, z, "fixed_large")
    np.testing.assert_allclose(x_prev, mean + np.sqrt(LINEAR.betas[t]) * z, rtol=0, atol=1e-6)


def test_p_sample_is_equation_11():
    eps_hat, x_t, z, t = normal(0), normal(1), normal(2), 300
    beta, alpha_bar = LINEAR.betas[t], LINEAR.alphas_cumprod[t]
    mean = (x_t - beta / np.sqrt(1 - alpha_bar) * eps_hat) / np.sqrt(1 - beta)
    x_prev = steps.p_sample(LINEAR, eps_hat, x_t, t, z, "fixed_large")
    np.testing.assert_allclose(x_prev, mean + np.sqrt(beta) * z, rtol=0, atol=2e-6)  # 8 roundings of 4


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_last_step_adds_no_noise(variance):
    eps_hat, x_t = normal(0), normal(1)
    noisy, plain = (steps.p_sample(LINEAR, eps_hat, x_t, 0, z, variance) for z in (normal(2), 0.0))
    np.testing.assert_array_equal(noisy, plain)
    noisy, plain = (steps.ddim_step(LINEAR, eps_hat, x_t, 20, -1, 1.0, z) for z in (normal(2), 0.0))
    np.testing.assert_array_equal(noisy, plain)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_step_to_any_earlier_t_has_its_noise_level(eta):
    """With the exact eps, the noise in x at t_prev, from eps and z, has variance 1 - alpha_bar."""
    x0, eps, z = normal(0), normal(1), normal(2)
    for t, t_prev in [(999, 998), (999, 0), (999, -1), (500, 123), (1, 0), (0, -1)]:
        x_t = forward.q_sample(LINEAR, x0, t, eps)
        x_prev = steps.ddim_step(LINEAR, eps, x_t, t, t_prev, eta, z)
        alpha_bar = LINEAR.alphas_cumprod[t]
        alpha_bar_prev = LINEAR.alphas_cumprod[t_prev] if t_prev >= 0 else 1.0
        sigma2 = eta**2 * (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
        # At eta 1 and t_prev = t - 1 the difference below nears 0 and its root the root of rounding.
        expected = np.sqrt(alpha_bar_prev) * x0 + np.sqrt(1 - alpha_bar_prev - sigma2) * eps + np.sqrt(sigma2) * z
        # x0_hat is off by the rounding of x_t (|x_t| < 4, 2.4e-7), divided by sqrt(alpha_bar).
        np.testing.assert_allclose(x_prev, expected, rtol=0, atol=2e-6 + 5e-7 / np.sqrt(alpha_bar))


@pytest.mark.parametrize("T", [2, 3, 10, 100])
def test_from_pure_noise_with_eta_1_all_noise_is_fresh(T):
    """With eta 1 at zero terminal SNR the coefficient of eps is 0: 1 - alpha_bar_prev - sigma^2 is 0, or just below."""
    schedule = rescale_zero_terminal_snr(linear_schedule(T, prediction_type="sample"))
    x0, z = normal(0), normal(2)
    x_prev = steps.ddim_step(schedule, x0, normal(1), T - 1, T - 2, 1.0, z)
    # That coefficient is the root of a rounding error: 1e-8.
    np.testing.assert_allclose(x_prev, forward.q_sample(schedule, x0, T - 2, z), rtol=0, atol=1e-6)


def test_ddim_with_eta_1_is_ddpm():
    """The same mean and variance, so the same x_prev from the same z (DDIM section 4.1)."""
    eps_hat, x_t, z = normal(0), normal(1), normal(2)
    for t in (0, 1, 500, 999):
        ddim = steps.ddim_step(LINEAR, eps_hat, x_t, t, t - 1, 1.0, z)
        ddpm = steps.p_sample(LINEAR, eps_hat, x_t, t, z)
        # Each sums three terms below 8, sqrt(alpha_bar_prev) x0_hat among them: 6 roundings of 5e-7.
        np.testing.assert_allclose(ddim, ddpm, rtol=0, atol=3e-6)


@pytest.mark.parametrize("clip", [None, 1.0, 0.5])
def test_clipping_keeps_x0_hat_in_range(clip):
    schedule = linear_schedule(prediction_type="sample")
    x0_hat = np.full(SHAPE, 3.0, np.float32)
    expected = clip or 3.0
    assert np.all(steps.ddim_step(schedule, x0_hat, normal(0), 10, -1, 0.0, 0.0, clip) == expected)
    assert np.all(steps.p_sample(schedule, x0_hat, normal(0), 0, 0.0, clip=clip) == expected)


def test_steps_stay_float32():
    args = LINEAR, normal(0), normal(1), 500
    assert steps.p_sample(*args, normal(2)).dtype == np.float32
    assert steps.ddim_step(*args, 400, np.float64(0.5), normal(2)).dtype == np.float32


def test_invalid_arguments_are_refused():
    args = LINEAR, normal(0), normal(1)
    with pytest.raises(MinidiffError, match="variance 'learned'"):
        steps.p_sample(*args, 5, 0.0, "learned")
    with pytest.raises(MinidiffError, match="from 0 to 999"):
        steps.p_sample(*args, 1000, 0.0)
    with pytest.raises(MinidiffError, match="from 0 to 999"):
        steps.ddim_step(*args, 1000, 999, 0.0, 0.0)
    for t_prev in (5, 6, -2):
        with pytest.raises(MinidiffError, match="t_prev must be from -1 to t - 1 = 4"):
            steps.ddim_step(*args, 5, t_prev, 0.0, 0.0)
    with pytest.raises(MinidiffError, match="eta must be from 0 to 1, not 1.5"):
        steps.ddim_step(*args, 5, 4, 1.5, 0.0)
