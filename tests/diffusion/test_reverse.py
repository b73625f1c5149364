"""Reverse diffusion: single steps, the walk that `sample` takes, and what it refuses."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidiff.diffusion import forward, reverse
from minidiff.diffusion.schedule import (
    cosine_schedule,
    linear_schedule,
    rescale_zero_terminal_snr,
    respace,
)
from minidiff.engine import tensor
from minidiff.engine.backend import get_backend
from minidiff.errors import MinidiffError

LINEAR = linear_schedule()
SHAPE = (2, 3, 5, 1)  # N, H, W, C


def normal(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def zeros(x_t, t, cond=None):
    return np.zeros_like(x_t)


def oracle(schedule, x0):
    """A model that knows x0: it tells exactly what is in x_t besides."""

    def model(x_t, t):
        eps = forward.eps_from_x0(schedule, x0, x_t, t)
        return forward.target(schedule, x0, t, eps)

    return model


def finish(walk):
    *_, (t, x_t, _) = walk
    assert t == -1
    return x_t


# --- single steps


@pytest.mark.parametrize("t", [1, 500, 999])
def test_p_sample_draws_from_the_posterior_when_the_noise_is_known(t):
    x0, eps, z = normal(0).clip(-1, 1), normal(1), normal(2)
    x_t = forward.q_sample(LINEAR, x0, t, eps)
    mean, variance = forward.q_posterior(LINEAR, x0, x_t, t)
    # x0_hat is off by the rounding of x_t over sqrt(abar), but weighs less than that root: 16 roundings of 1.
    x_prev = reverse.p_sample(LINEAR, eps, x_t, t, z)
    np.testing.assert_allclose(x_prev, mean + np.sqrt(variance) * z, rtol=0, atol=1e-6)
    x_prev = reverse.p_sample(LINEAR, eps, x_t, t, z, "fixed_large")
    np.testing.assert_allclose(x_prev, mean + np.sqrt(LINEAR.betas[t]) * z, rtol=0, atol=1e-6)


def test_p_sample_is_equation_11():
    eps_hat, x_t, z, t = normal(0), normal(1), normal(2), 300
    beta, abar = LINEAR.betas[t], LINEAR.alphas_cumprod[t]
    mean = (x_t - beta / np.sqrt(1 - abar) * eps_hat) / np.sqrt(1 - beta)
    x_prev = reverse.p_sample(LINEAR, eps_hat, x_t, t, z, "fixed_large")
    np.testing.assert_allclose(x_prev, mean + np.sqrt(beta) * z, rtol=0, atol=2e-6)  # 8 roundings of 4


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_last_steps_take_no_noise(variance):
    eps_hat, x_t = normal(0), normal(1)
    noisy, plain = (reverse.p_sample(LINEAR, eps_hat, x_t, 0, z, variance) for z in (normal(2), 0.0))
    np.testing.assert_array_equal(noisy, plain)
    noisy, plain = (reverse.ddim_step(LINEAR, eps_hat, x_t, 20, -1, 1.0, z) for z in (normal(2), 0.0))
    np.testing.assert_array_equal(noisy, plain)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_step_goes_anywhere_earlier_and_keeps_the_noise_level(eta):
    """From x0 and eps known, x at t_prev is a mixture whose noise, old and fresh, has variance 1 - abar."""
    x0, eps, z = normal(0), normal(1), normal(2)
    for t, t_prev in [(999, 998), (999, 0), (999, -1), (500, 123), (1, 0), (0, -1)]:
        x_t = forward.q_sample(LINEAR, x0, t, eps)
        x_prev = reverse.ddim_step(LINEAR, eps, x_t, t, t_prev, eta, z)
        abar = LINEAR.alphas_cumprod[t]
        abar_prev = LINEAR.alphas_cumprod[t_prev] if t_prev >= 0 else 1.0
        sigma2 = eta**2 * (1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev)
        # At eta 1 and t_prev = t - 1 the difference below nears 0 and its root the root of rounding.
        expected = np.sqrt(abar_prev) * x0 + np.sqrt(1 - abar_prev - sigma2) * eps + np.sqrt(sigma2) * z
        # x0_hat is off by the rounding of x_t (|x_t| < 4, 2.4e-7), divided by sqrt(abar).
        np.testing.assert_allclose(x_prev, expected, rtol=0, atol=2e-6 + 5e-7 / np.sqrt(abar))


@pytest.mark.parametrize("T", [2, 3, 10, 100])
def test_from_pure_noise_all_noise_becomes_fresh(T):
    """With eta 1 at zero terminal SNR nothing of eps stays: 1 - abar_prev - sigma^2 is 0, or just below."""
    schedule = rescale_zero_terminal_snr(linear_schedule(T, prediction_type="sample"))
    x0, z = normal(0), normal(2)
    x_prev = reverse.ddim_step(schedule, x0, normal(1), T - 1, T - 2, 1.0, z)
    # What stays of eps is the root of a rounding error: 1e-8.
    np.testing.assert_allclose(x_prev, forward.q_sample(schedule, x0, T - 2, z), rtol=0, atol=1e-6)


def test_ddim_with_eta_1_is_ddpm():
    """The same mean and variance, so the same x_prev from the same z (DDIM section 4.1)."""
    eps_hat, x_t, z = normal(0), normal(1), normal(2)
    for t in (0, 1, 500, 999):
        ddim = reverse.ddim_step(LINEAR, eps_hat, x_t, t, t - 1, 1.0, z)
        ddpm = reverse.p_sample(LINEAR, eps_hat, x_t, t, z)
        # Each sums three terms below 8, sqrt(abar_prev) x0_hat among them: 6 roundings of 5e-7.
        np.testing.assert_allclose(ddim, ddpm, rtol=0, atol=3e-6)


@pytest.mark.parametrize("clip_x0", [False, True])
def test_clipping_keeps_x0_hat_in_range(clip_x0):
    schedule = linear_schedule(prediction_type="sample")
    x0_hat = np.full(SHAPE, 3.0, np.float32)
    expected = 1.0 if clip_x0 else 3.0
    assert np.all(reverse.ddim_step(schedule, x0_hat, normal(0), 10, -1, 0.0, 0.0, clip_x0) == expected)
    assert np.all(reverse.p_sample(schedule, x0_hat, normal(0), 0, 0.0, clip_x0=clip_x0) == expected)


def test_steps_stay_float32():
    args = LINEAR, normal(0), normal(1), 500
    assert reverse.p_sample(*args, normal(2)).dtype == np.float32
    assert reverse.ddim_step(*args, 400, np.float64(0.5), normal(2)).dtype == np.float32


def test_what_a_step_refuses():
    args = LINEAR, normal(0), normal(1)
    with pytest.raises(MinidiffError, match="variance 'learned'"):
        reverse.p_sample(*args, 5, 0.0, "learned")
    with pytest.raises(MinidiffError, match="from 0 to 999"):
        reverse.p_sample(*args, 1000, 0.0)
    with pytest.raises(MinidiffError, match="from 0 to 999"):
        reverse.ddim_step(*args, 1000, 999, 0.0, 0.0)
    for t_prev in (5, 6, -2):
        with pytest.raises(MinidiffError, match="t_prev must be from -1 to t - 1 = 4"):
            reverse.ddim_step(*args, 5, t_prev, 0.0, 0.0)
    with pytest.raises(MinidiffError, match="eta must be from 0 to 1, not 1.5"):
        reverse.ddim_step(*args, 5, 4, 1.5, 0.0)


# --- the walk


@given(T=st.integers(1, 2000), data=st.data())
def test_timesteps_are_distinct_and_reach_both_ends(T, data):
    steps = data.draw(st.integers(1, T))
    ts = reverse.timesteps(T, steps)
    assert len(ts) == steps and ts[0] == T - 1 and np.all(np.diff(ts) < 0)
    assert ts[-1] == (0 if steps > 1 else T - 1)
    gaps = -np.diff(ts)
    assert steps <= 2 or gaps.max() - gaps.min() <= 1  # the mean gap, rounded down or up


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, "10", None])
def test_an_absurd_number_of_steps_is_refused(steps):
    with pytest.raises(MinidiffError, match="steps must be an integer from 1 to the schedule's 1000"):
        reverse.timesteps(1000, steps)


@pytest.mark.parametrize("steps", [1, 2, 50, 1000])
@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 1.0)])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_an_oracle_is_led_back_to_the_very_picture(prediction_type, sampler, eta, steps):
    schedule = linear_schedule(prediction_type=prediction_type)
    x0 = normal(0).clip(-1, 1)
    walk = reverse.sample(
        oracle(schedule, x0),
        schedule,
        SHAPE,
        np.random.default_rng(1),
        steps,
        sampler,
        eta=eta,
        clip_x0=False,
    )
    # The last x_t is x0_hat, off by the rounding of x_t (2.4e-7) over sqrt(abar): 0.006 at the first step.
    atol = 5e-7 / np.sqrt(schedule.alphas_cumprod[-1]) if steps == 1 else 1e-6
    np.testing.assert_allclose(finish(walk), x0, rtol=0, atol=atol)


@pytest.mark.parametrize("steps", [1, 20, 1000])
@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 1.0)])
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_an_oracle_is_led_back_from_pure_noise(prediction_type, sampler, eta, steps):
    schedule = rescale_zero_terminal_snr(cosine_schedule(1000, prediction_type))
    x0 = normal(0).clip(-1, 1)
    rng = np.random.default_rng(1)
    walk = reverse.sample(oracle(schedule, x0), schedule, SHAPE, rng, steps, sampler, eta=eta)
    np.testing.assert_allclose(finish(walk), x0, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.5)])
def test_sample_is_the_loop_over_single_steps(sampler, eta):
    """The order of draws, x_T and then a z a step, and the meaning of what is yielded, spelt out."""

    def model(x_t, t):
        assert t.shape == (2,) and t.dtype == np.int64
        return np.tanh(x_t) * (t[:, None, None, None] / 1000).astype(np.float32)

    walks_rng, rng = np.random.default_rng(0), np.random.default_rng(0)
    walk = list(reverse.sample(model, LINEAR, SHAPE, walks_rng, 7, sampler, eta=eta))
    ts = reverse.timesteps(1000, 7)
    x = rng.standard_normal(SHAPE, dtype=np.float32)
    for i, (t, t_prev) in enumerate(pairwise([*ts, -1])):
        eps_hat = model(x, np.full(2, t))
        x0_hat = forward.x0_from_eps(LINEAR, eps_hat, x, t).clip(-1, 1)
        z = rng.standard_normal(SHAPE, dtype=np.float32) if t_prev >= 0 and (sampler, eta) != ("ddim", 0) else 0
        if sampler == "ddpm":
            x = reverse.p_sample(respace(LINEAR, ts), eps_hat, x, 6 - i, z, clip_x0=True)
        else:
            x = reverse.ddim_step(LINEAR, eps_hat, x, t, t_prev, eta, z, clip_x0=True)
        reached, x_t, guess = walk[i]
        assert reached == t_prev
        # respace moves alphas_cumprod by 1e-13, so that now and then a weight rounds to its other neighbour.
        np.testing.assert_allclose(x_t, x, rtol=0, atol=1e-5)
        np.testing.assert_allclose(guess, x0_hat, rtol=0, atol=1e-5 / np.sqrt(LINEAR.alphas_cumprod[t]))
    np.testing.assert_array_equal(walk[-1][1], walk[-1][2])  # the finished pictures are the last guess
    assert walks_rng.bit_generator.state == rng.bit_generator.state  # and nothing more was drawn


@pytest.mark.parametrize("sampler", reverse.SAMPLERS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 7, 1), (2, 5, 4, 3)])
def test_any_shape_and_the_same_seed_the_same_pictures(sampler, shape):
    first, again, other = (
        finish(reverse.sample(zeros, LINEAR, shape, np.random.default_rng(seed), 5, sampler, clip_x0=False))
        for seed in (0, 0, 1)
    )
    assert first.shape == shape and first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert np.all(first != other)


def test_a_walk_may_start_from_given_noise():
    x_T = normal(0)
    given_ = finish(reverse.sample(zeros, LINEAR, SHAPE, np.random.default_rng(9), 5, x_T=x_T))
    drawn = finish(reverse.sample(zeros, LINEAR, SHAPE, np.random.default_rng(0), 5))
    np.testing.assert_array_equal(given_, drawn)


def test_pictures_end_in_range_unless_told_otherwise():
    rng = np.random.default_rng(0)
    assert np.abs(finish(reverse.sample(zeros, LINEAR, SHAPE, rng, 5))).max() <= 1
    assert np.abs(finish(reverse.sample(zeros, LINEAR, SHAPE, rng, 5, clip_x0=False))).max() > 1


def test_cond_reaches_the_model_only_if_there_is_one():
    seen = []
    rng = np.random.default_rng(0)
    finish(reverse.sample(lambda x_t, t: zeros(x_t, t), LINEAR, SHAPE, rng, 2))
    finish(reverse.sample(lambda x_t, t, cond: seen.append(cond) or zeros(x_t, t), LINEAR, SHAPE, rng, 2, cond="cat"))
    assert seen == ["cat", "cat"]


def test_a_model_may_return_tensors_and_leaves_no_tape():
    backend = get_backend("numpy")

    def model(x_t, t):
        assert not tensor._recording
        return tensor.Tensor(zeros(x_t, t), backend)

    walk = reverse.sample(model, LINEAR, SHAPE, np.random.default_rng(0), 3)
    next(walk)
    assert tensor._recording  # between steps the caller may train
    plain = finish(reverse.sample(zeros, LINEAR, SHAPE, np.random.default_rng(0), 3))
    np.testing.assert_array_equal(finish(walk), plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "euler"}, "sampler 'euler' is unknown: use one of ddpm, ddim"),
        ({"sampler": None}, "sampler None"),
        ({"steps": 0}, "steps must be"),
        ({"steps": 1001}, "steps must be"),
        ({"eta": -0.1}, "eta must be"),
        ({"eta": 1.1}, "eta must be"),
        ({"eta": float("nan")}, "eta must be"),
        ({"eta": "0"}, "eta must be"),
        ({"eta": 0.5, "sampler": "ddpm"}, "eta = 0.5 is for the ddim sampler"),
        ({"shape": (2, 3, 5)}, "shape must be"),
        ({"shape": (2, 0, 5, 1)}, "shape must be"),
        ({"shape": (2, 3, 5.0, 1)}, "shape must be"),
        ({"x_T": normal(0, (1, 3, 5, 1))}, "x_T has shape"),
    ],
)
def test_what_sample_refuses_it_refuses_before_the_first_step(change, message):
    arguments = {"shape": SHAPE, "rng": np.random.default_rng(0)} | change
    with pytest.raises(MinidiffError, match=message):
        reverse.sample(zeros, LINEAR, **arguments)


def test_a_model_of_another_shape_is_refused():
    def twice_the_channels(x_t, t):
        return np.concatenate([x_t, x_t], axis=-1)

    with pytest.raises(MinidiffError, match="both shapes must be equal"):
        next(reverse.sample(twice_the_channels, LINEAR, SHAPE, np.random.default_rng(0)))
