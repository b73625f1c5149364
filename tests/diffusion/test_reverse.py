"""Reverse diffusion: the trajectories of `sample`, and what it refuses."""

from itertools import pairwise

import numpy as np
import pytest

from minidiff.diffusion import forward, reverse
from minidiff.diffusion.noise_levels import timesteps
from minidiff.diffusion.sampler import SAMPLERS, Sampler
from minidiff.diffusion.schedule import (
    cosine_schedule,
    linear_schedule,
    rescale_zero_terminal_snr,
    respace,
)
from minidiff.diffusion.sde import continuous_time
from minidiff.diffusion.steps import ddim_step, p_sample
from minidiff.engine import tensor
from minidiff.engine.backend import get_backend
from minidiff.errors import MinidiffError

LINEAR = linear_schedule()
SHAPE = (2, 3, 5, 1)  # N, H, W, C
ALL = pytest.param(1000, marks=pytest.mark.slow)  # steps


def normal(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def zeros(x_t, t, cond=None):
    return np.zeros_like(x_t)


def oracle(schedule, x0):
    """A model that knows x0 and so predicts the target exactly."""

    def model(x_t, t):
        eps = forward.eps_from_x0(schedule, x0, x_t, t)
        return forward.target(schedule, x0, t, eps)

    return model


def at_real_times(schedule, sampler):
    """The schedule for an oracle: dpmpp_sde evaluates the model between two timesteps."""
    return continuous_time(schedule) if sampler == "dpmpp_sde" else schedule


# without pndm, which combines an oracle's predictions at several timesteps, and consistency, for other models
EXACT_WITH_AN_ORACLE = [*((name, 0.0) for name in SAMPLERS if name not in ("pndm", "consistency")), ("ddim", 1.0)]


def last_sample(trajectory):
    *_, (t, x_t, _) = trajectory
    assert t == -1
    return x_t


@pytest.mark.parametrize("steps", [1, 2, 50, ALL])
@pytest.mark.parametrize(("sampler", "eta"), EXACT_WITH_AN_ORACLE)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_with_an_oracle_sampling_ends_at_x0(prediction_type, sampler, eta, steps):
    schedule = linear_schedule(prediction_type=prediction_type)
    x0 = normal(0).clip(-1, 1)
    settings = Sampler(sampler, eta=eta, clip=None)
    model = oracle(at_real_times(schedule, sampler), x0)
    trajectory = reverse.sample(model, schedule, SHAPE, np.random.default_rng(1), steps, settings)
    # The last x_t is x0_hat, off by the rounding of x_t (2.4e-7) over sqrt(alpha_bar): 0.006 at the first step. In two
    # steps x_t is in the middle, where all but euler_maruyama, whose x_t is large there, are as exact as at the end.
    rounding = 5e-7 / np.sqrt(schedule.alphas_cumprod[1000 // steps - 1])
    atol = max(1e-6, rounding) if steps == 1 or sampler == "euler_maruyama" else 1e-6
    np.testing.assert_allclose(last_sample(trajectory), x0, rtol=0, atol=atol)


@pytest.mark.parametrize("steps", [1, 20, ALL])
@pytest.mark.parametrize(("sampler", "eta"), EXACT_WITH_AN_ORACLE)
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_with_an_oracle_sampling_from_pure_noise_ends_at_x0(prediction_type, sampler, eta, steps):
    schedule = rescale_zero_terminal_snr(cosine_schedule(1000, prediction_type))
    x0 = normal(0).clip(-1, 1)
    rng = np.random.default_rng(1)
    model = oracle(at_real_times(schedule, sampler), x0)
    trajectory = reverse.sample(model, schedule, SHAPE, rng, steps, Sampler(sampler, eta=eta))
    over_sigma = sampler not in ("ddpm", "ddim")  # which starts with 2^-24 in the place of alphas_cumprod = 0
    atol = 2.0**-12 * 5 if over_sigma and steps == 1 else 1e-6
    np.testing.assert_allclose(last_sample(trajectory), x0, rtol=0, atol=atol)


@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.5)])
def test_sample_is_the_loop_over_single_steps(sampler, eta):
    """The order of random numbers, x_T and then a z for each step, and the values yielded."""

    def model(x_t, t):
        assert t.shape == (2,) and t.dtype == np.int64
        return np.tanh(x_t) * (t[:, None, None, None] / 1000).astype(np.float32)

    sample_rng, rng = np.random.default_rng(0), np.random.default_rng(0)
    trajectory = list(reverse.sample(model, LINEAR, SHAPE, sample_rng, 7, Sampler(sampler, eta=eta)))
    ts = timesteps(1000, 7)
    x = rng.standard_normal(SHAPE, dtype=np.float32)
    for i, (t, t_prev) in enumerate(pairwise([*ts, -1])):
        eps_hat = model(x, np.full(2, t))
        x0_hat = forward.x0_from_eps(LINEAR, eps_hat, x, t).clip(-1, 1)
        z = rng.standard_normal(SHAPE, dtype=np.float32) if t_prev >= 0 and (sampler, eta) != ("ddim", 0) else 0
        if sampler == "ddpm":
            x = p_sample(respace(LINEAR, ts), eps_hat, x, 6 - i, z, clip=1.0)
        else:
            x = ddim_step(LINEAR, eps_hat, x, t, t_prev, eta, z, clip=1.0)
        t_reached, x_t, estimate = trajectory[i]
        assert t_reached == t_prev
        # respace moves alphas_cumprod by 1e-13, so that some coefficients round differently in float32.
        np.testing.assert_allclose(x_t, x, rtol=0, atol=1e-5)
        np.testing.assert_allclose(estimate, x0_hat, rtol=0, atol=1e-5 / np.sqrt(LINEAR.alphas_cumprod[t]))
    np.testing.assert_array_equal(trajectory[-1][1], trajectory[-1][2])  # the sample is the last x0_hat
    assert sample_rng.bit_generator.state == rng.bit_generator.state  # and no other number was drawn


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 7, 1), (2, 5, 4, 3)])
def test_any_shape_and_the_same_seed_the_same_images(sampler, shape):
    first, again, other = (
        last_sample(reverse.sample(zeros, LINEAR, shape, np.random.default_rng(seed), 5, Sampler(sampler, clip=None)))
        for seed in (0, 0, 1)
    )
    assert first.shape == shape and first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert np.all(first != other)


def test_sampling_from_given_noise():
    x_T = normal(0)
    given_ = last_sample(reverse.sample(zeros, LINEAR, SHAPE, np.random.default_rng(9), 5, x_T=x_T))
    drawn = last_sample(reverse.sample(zeros, LINEAR, SHAPE, np.random.default_rng(0), 5))
    np.testing.assert_array_equal(given_, drawn)


def test_samples_are_clipped_by_default():
    rng = np.random.default_rng(0)
    assert np.abs(last_sample(reverse.sample(zeros, LINEAR, SHAPE, rng, 5))).max() <= 1
    assert np.abs(last_sample(reverse.sample(zeros, LINEAR, SHAPE, rng, 5, Sampler(clip=None)))).max() > 1


def test_cond_reaches_the_model_only_if_there_is_one():
    received = []
    rng = np.random.default_rng(0)
    last_sample(reverse.sample(lambda x_t, t: zeros(x_t, t), LINEAR, SHAPE, rng, 2))
    last_sample(
        reverse.sample(lambda x_t, t, cond: received.append(cond) or zeros(x_t, t), LINEAR, SHAPE, rng, 2, cond="cat")
    )
    assert received == ["cat", "cat"]


def test_a_model_may_return_tensors_and_leaves_no_tape():
    backend = get_backend("numpy")

    def model(x_t, t):
        assert not tensor._recording
        return tensor.Tensor(zeros(x_t, t), backend)

    trajectory = reverse.sample(model, LINEAR, SHAPE, np.random.default_rng(0), 3)
    next(trajectory)
    assert tensor._recording  # between steps the caller may train
    plain = last_sample(reverse.sample(zeros, LINEAR, SHAPE, np.random.default_rng(0), 3))
    np.testing.assert_array_equal(last_sample(trajectory), plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "eulr"}, "sampler 'eulr' is unknown: use one of ddpm, ddim"),
        ({"steps": 0}, "steps must be"),
        ({"steps": 1001}, "steps must be"),
        ({"shape": (2, 3, 5)}, "shape must be"),
        ({"shape": (2, 0, 5, 1)}, "shape must be"),
        ({"shape": (2, 3, 5.0, 1)}, "shape must be"),
        ({"x_T": normal(0, (1, 3, 5, 1))}, "x_T has shape"),
        ({"begin": 50}, "begin must be an integer from 0 to 49"),
        ({"begin": -1}, "begin must be an integer from 0 to 49"),
    ],
)
def test_what_sample_refuses_it_refuses_before_the_first_step(change, message):
    arguments = {"shape": SHAPE, "rng": np.random.default_rng(0)} | change
    with pytest.raises(MinidiffError, match=message):
        reverse.sample(zeros, LINEAR, **arguments)


def test_a_model_of_another_shape_is_refused():
    def three_times_the_channels(x_t, t):
        return np.concatenate([x_t, x_t, x_t], axis=-1)

    with pytest.raises(MinidiffError, match="both shapes must be equal"):
        next(reverse.sample(three_times_the_channels, LINEAR, SHAPE, np.random.default_rng(0)))
