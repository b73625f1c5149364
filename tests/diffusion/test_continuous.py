"""EDM and rectified flow: their formulas, and sampling against the solution of the differential equation."""

import numpy as np
import pytest

from minidiff.diffusion.continuous import EDM, SIGMA_DATA, Flow, preconditioning
from minidiff.diffusion.forward import q_sample, target, x0_and_eps
from minidiff.diffusion.model import as_model
from minidiff.diffusion.noise_levels import noise_levels
from minidiff.diffusion.reverse import sample
from minidiff.diffusion.sampler import SAMPLERS, Sampler
from minidiff.diffusion.schedule import cosine_schedule
from minidiff.errors import MinidiffError

SHAPE = (3, 2, 4, 2)
X0, EPS = (np.random.default_rng(seed).standard_normal(SHAPE) for seed in (0, 1))
BOTH = pytest.mark.parametrize("schedule", [EDM(), Flow()], ids=["edm", "flow"])


def papers_x(schedule, x_t, t):
    """The schedule's own x: x0 + sigma eps, or (1 - t) x0 + t eps."""
    t = np.reshape(t, (-1, 1, 1, 1))
    return x_t * (np.sqrt(1 + t**2) if isinstance(schedule, EDM) else np.sqrt((1 - t) ** 2 + t**2))


def test_x_t_is_the_papers_x_scaled():
    sigma, t = np.array([0.002, 1.0, 80.0]), np.array([0.0, 0.3, 1.0])
    s = sigma.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(papers_x(EDM(), q_sample(EDM(), X0, sigma, EPS), sigma), X0 + s * EPS, rtol=1e-12)
    s = t.reshape(-1, 1, 1, 1)
    x = papers_x(Flow(), q_sample(Flow(), X0, t, EPS), t)
    np.testing.assert_allclose(x, (1 - s) * X0 + s * EPS, rtol=1e-12, atol=1e-15)


def test_preconditioning_is_table_1_of_karras():
    """At sigma = SIGMA_DATA = 1/2 and at sigma = 2; and by what it is derived from (appendix B.6, eq. 117 to 131)."""
    np.testing.assert_allclose(preconditioning(0.5), [1 / 2, 0.5**1.5, 2**0.5, np.log(0.5) / 4], rtol=1e-15)
    np.testing.assert_allclose(preconditioning(2.0), [1 / 17, 2 / 17**0.5, 2 / 17**0.5, np.log(2) / 4], rtol=1e-15)
    sigma = np.geomspace(0.002, 1e4, 50)
    c_skip, c_out, c_in, _ = preconditioning(sigma)

    def target_std(c_skip):
        """Of x0 - c_skip (x0 + sigma eps), with the deviation SIGMA_DATA of x0."""
        return np.hypot((1 - c_skip) * SIGMA_DATA, c_skip * sigma)

    np.testing.assert_allclose(c_in * np.hypot(SIGMA_DATA, sigma), 1, rtol=1e-14)  # the input has variance 1
    np.testing.assert_allclose(c_out, target_std(c_skip), rtol=1e-10)  # and the target: 1 - c_skip loses five digits
    assert np.all(c_out < target_std(c_skip * 1.001)) and np.all(c_out < target_std(c_skip * 0.999))  # the least c_out


@pytest.mark.parametrize("sigma", [0.002, 0.05, 1.0, 80.0, 1e4])
def test_edm_keeps_its_digits_in_float32(sigma):
    """target is rounded once; x0_hat and eps_hat are as exact as some ten roundings of each of their two terms."""
    x0, eps, F = (np.random.default_rng(seed).standard_normal(SHAPE, dtype=np.float32) for seed in range(3))
    total = sigma**2 + SIGMA_DATA**2
    exact = (
        sigma / SIGMA_DATA * x0.astype(np.float64) - SIGMA_DATA * eps
    ) / total**0.5  # without c_skip's cancellation
    np.testing.assert_allclose(target(EDM(), x0, sigma, eps), exact, rtol=2**-24 + 1e-9)
    x_t = q_sample(EDM(), x0, sigma, eps)
    x = x_t * np.sqrt(1 + sigma**2)  # float64
    x0_hat, eps_hat = x0_and_eps(EDM(), F, x_t, sigma)
    assert x0_hat.dtype == eps_hat.dtype == np.float32
    for found, a, b in (
        (x0_hat, SIGMA_DATA**2 / total * x, sigma * SIGMA_DATA / total**0.5 * F),
        (eps_hat, sigma / total * x, -SIGMA_DATA / total**0.5 * F),
    ):
        assert np.all(np.abs(found - (a + b)) <= 10 * 2**-24 * (np.abs(a) + np.abs(b)))


def test_heun_is_algorithm_1_of_karras():
    """Written as in the paper, on x instead of x_t, with sigma(t) = t and s(t) = 1."""
    sigmas = EDM().sampling_times(6)
    x_T = np.random.default_rng(0).standard_normal(SHAPE)

    def F(x, c_noise):
        return np.sin(3 * x) + c_noise.reshape(-1, 1, 1, 1)

    def D(x, sigma):
        c_skip, c_out, c_in, c_noise = preconditioning(sigma)
        return c_skip * x + c_out * F(c_in * x, np.full(1, c_noise))

    x = x_T * np.sqrt(1 + sigmas[0] ** 2)
    for sigma, sigma_next in zip(sigmas, [*sigmas[1:], 0], strict=True):
        d = (x - D(x, sigma)) / sigma
        x_next = x + (sigma_next - sigma) * d
        if sigma_next != 0:
            d_next = (x_next - D(x_next, sigma_next)) / sigma_next
            x_next = x + (sigma_next - sigma) * (d + d_next) / 2
        x = x_next
    sampler = Sampler("heun", clip=None)
    *_, (_, x_0, _) = sample(as_model(F, EDM()), EDM(), SHAPE, np.random.default_rng(), 6, sampler, x_T=x_T)
    # sigma = 0.002 from 1 - alpha_bar = 4e-6 in float64 has eleven digits
    np.testing.assert_allclose(x_0, x, rtol=1e-9, atol=1e-9)


def test_edm_takes_its_network_by_table_1():
    """c_in and c_noise in its input, and D(x; sigma) from its prediction."""
    sigma = np.array([0.05, 0.7, 20.0])
    s = sigma.reshape(-1, 1, 1, 1)
    x_t = q_sample(EDM(), X0, sigma, EPS)
    inputs = {}
    as_model(lambda x, t: inputs.update(x=x, t=t), EDM())(x_t, sigma)
    np.testing.assert_allclose(inputs["x"], (X0 + s * EPS) / np.sqrt(s**2 + SIGMA_DATA**2), rtol=1e-12)
    np.testing.assert_allclose(inputs["t"], np.log(sigma) / 4)
    c_skip, c_out = SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2), s * SIGMA_DATA / np.sqrt(s**2 + SIGMA_DATA**2)
    F = np.random.default_rng(2).standard_normal(SHAPE)
    x0_hat, eps_hat = x0_and_eps(EDM(), F, x_t, sigma)
    np.testing.assert_allclose(x0_hat, c_skip * (X0 + s * EPS) + c_out * F, rtol=1e-10)
    np.testing.assert_allclose(x0_hat + s * eps_hat, X0 + s * EPS, rtol=1e-9, atol=1e-12)


def test_flow_interpolates_linearly():
    t = np.array([0.0, 0.25, 1.0])
    inputs = {}
    x_t = q_sample(Flow(), X0, t, EPS)
    as_model(lambda x, t: inputs.update(x=x, t=t), Flow())(x_t, t)
    np.testing.assert_allclose(inputs["x"], papers_x(Flow(), x_t, t), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(inputs["t"], 1000 * t)
    np.testing.assert_array_equal(target(Flow(), X0, t, EPS), EPS - X0)


@BOTH
def test_x0_and_eps_undo_the_target(schedule):
    t = np.array([0.01, 0.4, 0.95])
    x_t = q_sample(schedule, X0, t, EPS)
    x0_hat, eps_hat = x0_and_eps(schedule, target(schedule, X0, t, EPS), x_t, t)
    np.testing.assert_allclose(x0_hat, X0, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(eps_hat, EPS, rtol=1e-10, atol=1e-12)


def test_timestep_distribution_of_training():
    """Of 40,000 numbers: the mean within four standard errors, 4 / 200 of a standard deviation; that within 2 %."""
    rng, n = np.random.default_rng(0), 40_000
    log_sigma, t = np.log(EDM().sample_t(rng, n)), Flow().sample_t(rng, n)
    assert abs(log_sigma.mean() + 1.2) < 0.024 and abs(log_sigma.std() / 1.2 - 1) < 0.02
    assert 0 <= t.min() < 0.001 and 0.999 < t.max() <= 1 and abs(t.mean() - 0.5) < 0.006


def gaussian(schedule, mean, deviation):
    """The optimal model for x0 of independent normal values: E[x0 | x_t], as the schedule's prediction type."""

    def model(x_t, t):
        alpha_bar = schedule.alpha_bar(t).reshape(-1, 1, 1, 1)
        gain = np.sqrt(alpha_bar) * deviation**2 / (alpha_bar * deviation**2 + 1 - alpha_bar)
        x0 = mean + gain * (x_t - np.sqrt(alpha_bar) * mean)
        return target(schedule, x0, t, (x_t - np.sqrt(alpha_bar) * x0) / np.sqrt(1 - alpha_bar))

    return model


def sampling_error(schedule, name, steps):
    """The distance from the exact solution of the probability flow, which keeps the quantile of each value."""
    mean, deviation = 0.3, 0.4
    x_T = np.random.default_rng(0).standard_normal((4, 8, 8, 1))
    sampler = Sampler(name, clip=None)
    *_, (_, x_0, _) = sample(gaussian(schedule, mean, deviation), schedule, x_T.shape, None, steps, sampler, x_T=x_T)
    alpha_bar = noise_levels(schedule, steps, sampler).schedule.alphas_cumprod[-1]  # of x_T
    z = (x_T - np.sqrt(alpha_bar) * mean) / np.sqrt(alpha_bar * deviation**2 + 1 - alpha_bar)
    return np.abs(x_0 - (mean + deviation * z)).max()


@BOTH
@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_of_convergence_for_a_gaussian(schedule, name, order):
    """To 1e-3 by solvers of second order; twice the steps divide the error by about 2^order."""
    few, many = sampling_error(schedule, name, 200), sampling_error(schedule, name, 400)
    assert many < (1e-3 if order == 2 else 1e-2)
    assert np.log2(few / many) > 0.9 * order


@BOTH
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "consistency"])  # for consistency models
def test_every_sampler_samples_the_distribution_of_the_data(schedule, name):
    """4,096 values of mean 0.3 and standard deviation 0.4: to four standard errors, and 0.02 for so few steps."""
    shape, rng = (16, 16, 16, 1), np.random.default_rng(1)
    trajectory = sample(gaussian(schedule, 0.3, 0.4), schedule, shape, rng, 100, Sampler(name, clip=None))
    *_, (t, x_0, _) = trajectory
    assert t == -1
    assert abs(x_0.mean() - 0.3) < 0.025 + 0.02 and abs(x_0.std() - 0.4) < 0.018 + 0.02


@BOTH
def test_invalid_arguments_are_refused(schedule):
    with pytest.raises(MinidiffError, match="steps must be an integer from 1 to 1000"):
        noise_levels(schedule, 1001, Sampler())
    with pytest.raises(MinidiffError, match="karras is for schedules over whole timesteps"):
        noise_levels(schedule, 10, Sampler("euler", karras=True))
    with pytest.raises(MinidiffError, match="t must be from"):
        q_sample(schedule, X0, np.array([0.5, np.nan, 0.5]), EPS)


def test_other_networks_are_models_as_they_are():
    assert as_model(print, cosine_schedule(10)) is print
