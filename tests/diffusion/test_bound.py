"""Bits per dimension where they are known: of one image, of Gaussian data, and by torch's distributions."""

import math

import numpy as np
import pytest
import torch
from small_runs import refused

import minidiff as md
from minidiff.data.imaging import to_float, to_uint8
from minidiff.diffusion.bound import bits_per_dim
from minidiff.diffusion.forward import target
from minidiff.diffusion.noise_levels import noise_levels

DDPM = md.Sampler("ddpm", clip=None)
SCHEDULES = [
    md.linear_schedule(40, 1e-4, 0.3), md.linear_schedule(40, 1e-4, 0.3, "sample"),
    md.cosine_schedule(40, "v_prediction"), md.EDM(), md.Flow(),
]  # fmt: skip
by_name = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.prediction_type)


def predicting(schedule, x0_of):
    """A model with the estimate x0_of(x_t, alpha_bar), as the schedule's prediction type."""

    def model(x_t, t):
        alpha_bar = schedule.alpha_bar(t).reshape(-1, 1, 1, 1)
        x0 = x0_of(x_t, alpha_bar)
        return target(schedule, x0, t, (x_t - np.sqrt(alpha_bar) * x0) / np.sqrt(1 - alpha_bar))

    return model


def random_images(n=4):
    return to_float(np.random.default_rng(0).integers(0, 256, (n, 5, 4, 3), dtype=np.uint8)).astype(np.float64)


@by_name
def test_bound_of_one_known_image(schedule):
    """A model that predicts the image itself: the KL of every step is 0, and each byte is the mean of the decoder."""
    x0 = random_images(1)
    model = predicting(schedule, lambda x_t, alpha_bar: x0)
    found = bits_per_dim(model, schedule, x0, np.random.default_rng(0), steps=40, sampler=DDPM)
    tables = noise_levels(schedule, 40, DDPM).schedule
    alpha_bar = tables.alphas_cumprod[-1]
    prior = torch.distributions.kl_divergence(
        torch.distributions.Normal(torch.tensor(np.sqrt(alpha_bar) * x0), math.sqrt(1 - alpha_bar)),
        torch.distributions.Normal(torch.zeros(1, dtype=torch.float64), 1.0),
    )
    sigma = math.sqrt(tables.posterior_variance[1])
    inner = math.erf(1 / 255 / sigma / math.sqrt(2))
    outer = (1 + inner) / 2  # the intervals of bytes 0 and 255 are unbounded on one side
    ends = np.mean((x0 == -1) | (x0 == 1))
    decoder = -((1 - ends) * math.log2(inner) + ends * math.log2(outer))
    assert found.prior[0] == pytest.approx(prior.mean().item() / math.log(2), rel=1e-9, abs=1e-15)
    assert found.steps[0] == pytest.approx(0, abs=1e-12)
    assert found.decoder[0] == pytest.approx(decoder, rel=1e-9, abs=1e-12)
    assert found.total[0] == found.prior[0] + found.steps[0] + found.decoder[0]
    ratio = tables.posterior_variance[1:] / tables.betas[1:]  # with the default, fixed_large, the KL is above 0
    larger = bits_per_dim(model, schedule, x0, np.random.default_rng(0), steps=40)
    assert larger.steps[0] == pytest.approx(np.sum(ratio - 1 - np.log(ratio)) / 2 / math.log(2), rel=1e-9)


MEAN, DEVIATION = 0.1, 0.2


def gaussian(n):
    """Normal numbers rounded to bytes; few are clipped, and 26 bytes are a standard deviation."""
    values = MEAN + DEVIATION * np.random.default_rng(0).standard_normal((n, 8, 8, 1))
    return to_float(to_uint8(values)).astype(np.float64)


def best(x_t, alpha_bar):
    """E[x0 | x_t] for normal x0."""
    gain = np.sqrt(alpha_bar) * DEVIATION**2 / (alpha_bar * DEVIATION**2 + 1 - alpha_bar)
    return MEAN + gain * (x_t - np.sqrt(alpha_bar) * MEAN)


def known_steps(tables, variance):
    """The expected KL of every step, bits: the squared error of x0_hat is Var[x0 | x_t]."""
    alpha_bar, alpha_bar_prev = tables.alphas_cumprod[1:], tables.alphas_cumprod_prev[1:]
    error = DEVIATION**2 * (1 - alpha_bar) / (alpha_bar * DEVIATION**2 + 1 - alpha_bar)
    coef_x0 = np.sqrt(alpha_bar_prev) * tables.betas[1:] / (1 - alpha_bar)
    beta_tilde = tables.posterior_variance[1:]
    sigma2 = beta_tilde if variance == "fixed_small" else tables.betas[1:]
    return (np.log(sigma2 / beta_tilde) + beta_tilde / sigma2 - 1 + coef_x0**2 * error / sigma2) / 2 / math.log(2)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@by_name
def test_bound_of_gaussian_data(schedule, variance):
    """The mean KL of the steps is the expected one, and the bound is above the entropy."""
    sampler = md.Sampler("ddpm", clip=None, variance=variance)
    x0, steps = gaussian(64), 40
    found = bits_per_dim(
        predicting(schedule, best), schedule, x0, np.random.default_rng(1), steps=steps, sampler=sampler
    )
    want = known_steps(noise_levels(schedule, steps, sampler).schedule, variance).sum()
    assert abs(found.steps.mean() - want) < 4 * found.steps.std() / 8
    entropy = math.log2(DEVIATION * math.sqrt(2 * math.pi * math.e) * 127.5)
    assert entropy < found.total.mean()


def test_bound_of_many_steps_is_near_the_exact_likelihood():
    """-log2 p(x0) of normal x0, exactly; with 1000 steps, whose posterior variance is near beta, within 2 %."""
    schedule, x0 = md.linear_schedule(1000), gaussian(16)
    sampler = md.Sampler("ddpm", clip=None, variance="fixed_large")
    found = bits_per_dim(predicting(schedule, best), schedule, x0, np.random.default_rng(1), sampler=sampler)
    exact = (np.log(DEVIATION * math.sqrt(2 * math.pi) * 127.5) + ((x0 - MEAN) / DEVIATION) ** 2 / 2).mean((1, 2, 3))
    exact /= math.log(2)
    over = found.total - exact
    assert abs(over.mean()) < 0.02 * exact.mean()


def test_a_worse_model_has_a_higher_bound():
    schedule, x0 = SCHEDULES[0], gaussian(32)

    def mean_bound(x0_of):
        return bits_per_dim(predicting(schedule, x0_of), schedule, x0, np.random.default_rng(1)).total.mean()

    biased = mean_bound(lambda x_t, alpha_bar: best(x_t, alpha_bar) + 0.05)
    assert mean_bound(best) < biased < mean_bound(lambda x_t, alpha_bar: 0 * x_t)


@pytest.mark.parametrize("evaluations", [1, 5, 39, 1000])
def test_the_estimate_from_some_steps_is_unbiased(evaluations):
    """Over 2000 images of one distribution the mean is within 4 standard errors of the expected one."""
    schedule = SCHEDULES[0]
    x0 = gaussian(2000)
    found = bits_per_dim(
        predicting(schedule, best), schedule, x0, np.random.default_rng(2), evaluations=evaluations, sampler=DDPM
    )
    want = known_steps(noise_levels(schedule, 40, DDPM).schedule, "fixed_small").sum()
    assert abs(found.steps.mean() - want) < 4 * found.steps.std() / math.sqrt(2000)
    assert found.steps.std() > 0


def test_number_of_model_evaluations():
    calls = []

    def model(x_t, t, cond):
        calls.append((t.tolist(), cond.tolist()))
        return 0 * x_t

    bits_per_dim(
        model, md.linear_schedule(40), random_images(2), np.random.default_rng(0), np.array([3, 5]), evaluations=4
    )
    times = np.array([t for t, _ in calls])
    assert [cond for _, cond in calls] == [[3, 5]] * 5
    assert (times[-1] == 0).all() and (times[:-1] > 0).all()
    assert (np.diff(times[:-1], axis=0) > 0).all()  # each in an interval of its own


def decoder_bits(byte, x0_hat, sigma):
    """-log2 of a byte's mass in a Gaussian, by torch in float64."""
    normal = torch.distributions.Normal(torch.tensor(x0_hat, dtype=torch.float64), sigma)
    low, high = (normal.cdf(torch.tensor((byte + side - 127.5) / 127.5, dtype=torch.float64)) for side in (-0.5, 0.5))
    low, high = (0.0 if byte == 0 else low), (1.0 if byte == 255 else high)
    return -math.log2(high - low)


@pytest.mark.parametrize("byte", [0, 1, 100, 254, 255])
@pytest.mark.parametrize("off", [-0.03, 0.0, 0.01])
def test_the_decoder_is_a_discretised_gaussian(byte, off):
    schedule = SCHEDULES[0]
    x0 = np.full((1, 1, 1, 1), byte / 127.5 - 1)
    for variance, sigma2 in (("fixed_small", schedule.posterior_variance[1]), ("fixed_large", schedule.betas[0])):
        sampler = md.Sampler("ddpm", clip=None, variance=variance)
        model = predicting(schedule, lambda x_t, alpha_bar: x0 + off)
        found = bits_per_dim(model, schedule, x0, np.random.default_rng(0), sampler=sampler)
        assert found.decoder[0] == pytest.approx(
            decoder_bits(byte, x0.item() + off, math.sqrt(sigma2)), rel=1e-6, abs=1e-9
        )


def test_the_decoder_is_symmetric_far_from_its_mean():
    """Some nine standard deviations off, where the distribution function rounds to 1 on one side."""
    schedule, x0 = SCHEDULES[0], np.full((1, 1, 1, 1), 100 / 127.5 - 1)
    bits = []
    for sign in (1, -1):
        model = predicting(schedule, lambda x_t, alpha_bar, sign=sign: sign * x0 - 0.1)
        bits += bits_per_dim(model, schedule, sign * x0, np.random.default_rng(0), sampler=DDPM).decoder.tolist()
        model = predicting(schedule, lambda x_t, alpha_bar, sign=sign: sign * x0 + 0.1)
        bits += bits_per_dim(model, schedule, sign * x0, np.random.default_rng(0), sampler=DDPM).decoder.tolist()
    assert bits[0] > 60 and bits == pytest.approx([bits[0]] * 4, rel=1e-9)


def test_the_masses_of_all_bytes_add_to_one():
    """With the intervals of bytes 0 and 255 unbounded."""
    schedule = SCHEDULES[0]
    x0 = (np.arange(256) / 127.5 - 1).reshape(256, 1, 1, 1)
    model = predicting(schedule, lambda x_t, alpha_bar: np.full_like(x_t, 0.97))
    found = bits_per_dim(model, schedule, x0, np.random.default_rng(0), sampler=DDPM)
    assert np.sum(2**-found.decoder) == pytest.approx(1, rel=1e-9)
    assert np.isfinite(found.decoder).all()


def test_clipping():
    """A sampler that clips x0_hat = 1.5 to the true 1 has no KL."""
    schedule, x0 = SCHEDULES[0], np.ones((1, 2, 2, 1))
    model = predicting(schedule, lambda x_t, alpha_bar: np.full_like(x_t, 1.5))
    clipped, unclipped = (
        bits_per_dim(model, schedule, x0, np.random.default_rng(0), sampler=s) for s in (md.Sampler("ddpm"), DDPM)
    )
    assert clipped.steps[0] == pytest.approx(0, abs=1e-12) and unclipped.steps[0] > 1


def test_float32_images_and_a_model_of_tensors():
    """As in float64, but for the rounding of x_t by 2^-24."""
    schedule, x0 = SCHEDULES[0], gaussian(4)
    backend = md.get_backend("numpy")
    network = predicting(schedule, best)

    def model(x_t, t):
        assert x_t.dtype == np.float32
        return md.Tensor(network(x_t, t).astype(np.float32), backend)

    wide = bits_per_dim(network, schedule, x0, np.random.default_rng(1)).total
    narrow = bits_per_dim(model, schedule, x0.astype(np.float32), np.random.default_rng(1)).total
    np.testing.assert_allclose(narrow, wide, rtol=1e-4)


def test_invalid_arguments_are_refused():
    model, rng = (lambda x_t, t: x_t), np.random.default_rng(0)
    refused(
        lambda: bits_per_dim(model, SCHEDULES[0], random_images(), rng, sampler=md.Sampler("ddim")),
        match="sampler ddim: the",
    )
    refused(lambda: bits_per_dim(model, SCHEDULES[0], random_images(), rng, steps=1), match="at least 2 steps, not 1")
    refused(lambda: bits_per_dim(model, SCHEDULES[0], random_images(), rng, steps=41), match="steps must be")
