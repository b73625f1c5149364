"""Image-to-image, inpainting, inversion and spherical interpolation: what is kept, what changes, and the result."""

import exact_checks as checks
import numpy as np
import pytest

from minidiff.diffusion import forward
from minidiff.diffusion.editing import INVERTIBLE, inpainting, invert, redraw, repaint, slerp
from minidiff.diffusion.noise_levels import noise_levels
from minidiff.diffusion.reverse import sample
from minidiff.diffusion.sampler import SAMPLERS, Sampler
from minidiff.diffusion.schedule import cosine_schedule, linear_schedule
from minidiff.errors import MinidiffError

pytestmark = pytest.mark.slow  # all together

LINEAR = linear_schedule()
SHAPE = (2, 4, 6, 1)


def normal(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def toy_model(x_t, t, cond=None):
    return np.sin(x_t) * (0.5 + t.reshape(-1, 1, 1, 1) / 2000).astype(np.float32)


def last_sample(trajectory):
    *_, (t, x_0, _) = trajectory
    assert t == -1
    return x_0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_redraw_is_the_last_part_of_a_trajectory(sampler):
    """The same as `sample` from x_t of q_sample, at the noise level where the part begins."""
    x0 = normal(0).clip(-1, 1)
    trajectory = list(redraw(toy_model, LINEAR, x0, 0.3, np.random.default_rng(1), 20, sampler))
    levels = noise_levels(LINEAR, 20, Sampler(sampler))
    assert [t for t, *_ in trajectory] == [*levels.ts[15:].tolist(), -1]
    rng = np.random.default_rng(1)
    x_t = forward.q_sample(levels.schedule, x0, 5, rng.standard_normal(SHAPE, dtype=np.float32))
    again = list(sample(toy_model, LINEAR, SHAPE, rng, 20, sampler, x_T=x_t, begin=14))
    for ours, theirs in zip(trajectory, again, strict=True):
        np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize("strength", [0.0, 0.2, 0.5, 0.8])
def test_how_much_of_x0_a_strength_keeps(strength):
    """If x0 is N(0, I) the optimal model leaves every x_t as it is: sqrt(alpha_bar) x0 remains."""
    shape = (4, 32, 32, 1)
    x0 = normal(0, shape)
    schedule = linear_schedule(prediction_type="sample")

    def best(x_t, t):
        return np.sqrt(schedule.alphas_cumprod[t]).astype(np.float32).reshape(-1, 1, 1, 1) * x_t

    sampler = Sampler(clip=None)
    x_0 = last_sample(redraw(best, schedule, x0, strength, np.random.default_rng(1), 50, sampler))
    kept = np.mean(x0 * x_0) / np.mean(x0**2)
    begin = noise_levels(schedule, 50, sampler).schedule.alphas_cumprod[round(50 * strength) - 1] if strength else 1.0
    assert kept == pytest.approx(np.sqrt(begin), abs=4 / 64)  # four standard errors of a mean of 4096 values


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(MinidiffError, match="strength must be from 0 to 1"):
        redraw(toy_model, LINEAR, normal(0), strength, np.random.default_rng(0))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_inpainting_keeps_the_known_region(sampler, prediction_type):
    schedule = cosine_schedule(1000, prediction_type)
    x0 = normal(0).clip(-1, 1)
    mask = np.zeros((4, 6, 1), bool)
    mask[:, 3:] = True
    calls = []

    def model(x_t, t, cond):
        calls.append((x_t.copy(), t, cond))
        return toy_model(x_t, t)

    rng, labels = np.random.default_rng(1), np.array([1, 0])
    trajectory = list(sample(inpainting(model, schedule, x0, mask), schedule, SHAPE, rng, 50, sampler, cond=labels))
    x_0 = trajectory[-1][1]
    # x0_hat is off by the rounding of x_t over sqrt(alpha_bar), and the last x_t is x0_hat: at t = 19 that root is 1
    np.testing.assert_allclose(x_0[:, :, :3], x0[:, :, :3], rtol=0, atol=1e-5)
    assert np.abs(x_0[:, :, 3:] - x0[:, :, 3:]).mean() > 0.1
    assert len(calls) == 50 and all(cond is labels for *_, cond in calls)
    # at every noise level the known region is as noisy as the rest: its eps has unit variance
    for x_t, t, _ in calls[::7]:
        eps = forward.eps_from_x0(schedule, x0, x_t, t)[:, :, :3]
        assert 0.4 < eps.std() < 1.8  # of 24 values


@pytest.mark.parametrize("prediction_type", checks.PREDICTION_TYPES)
def test_inversion_and_back(prediction_type):
    checks.check_round_trip(prediction_type)


@pytest.mark.parametrize("fixed_point", [0, 5])
def test_inversion_converges_to_the_probability_flow(fixed_point):
    checks.check_inversion_order(fixed_point)


def test_an_inverse_step_with_enough_iterations_inverts_ddims():
    """The states on the way are those of sampling, in reverse, and plain inversion evaluates the model once a step."""
    schedule = cosine_schedule(1000, "v_prediction")
    x0, labels, calls = normal(0).clip(-1, 1), np.array([1, 0]), []

    def model(x_t, t, cond):
        calls.append((t[0], cond))
        return toy_model(x_t, t)

    there = list(invert(model, schedule, x0, 10, labels, fixed_point=30))
    assert len(calls) == 310 and all(cond is labels for _, cond in calls)
    *_, (_, x_T, _) = there
    back = list(sample(model, schedule, SHAPE, None, 10, INVERTIBLE, labels, x_T=x_T))
    assert [t for t, *_ in there] == [*(t for t, *_ in back[-2::-1]), 999]
    for (_, ours, x0_hat), (_, theirs, _) in zip(there, [*back[-2::-1], (0, x_T, 0)], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)
        assert ours.dtype == x0_hat.dtype == np.float32
    np.testing.assert_allclose(back[-1][1], x0, rtol=0, atol=2e-6)
    calls.clear()
    list(invert(model, schedule, x0, 10, labels, fixed_point=0))
    assert [t for t, _ in calls] == list(range(99, 1000, 100))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_repaint_is_nearer_to_the_exact_conditional(prediction_type):
    checks.check_repaint(prediction_type)


def test_repaint_adds_the_noise_of_every_level():
    checks.check_repaint_known()


def test_repaint_keeps_the_known_region():
    schedule, mask, calls = cosine_schedule(1000, "v_prediction"), np.zeros((4, 6, 1), bool), []
    x0, labels = normal(0).clip(-1, 1), np.array([1, 0])
    mask[:, 3:] = True

    def model(x_t, t, cond):
        calls.append((x_t.copy(), t, cond))
        return toy_model(x_t, t)

    trajectory = list(repaint(model, schedule, x0, mask, np.random.default_rng(1), 20, labels, resample=3))
    assert [t for t, *_ in trajectory] == [*range(949, 0, -50), -1]
    x_0 = trajectory[-1][1]
    np.testing.assert_array_equal(x_0[:, :, :3], x0[:, :, :3])
    assert np.abs(x_0[:, :, 3:] - x0[:, :, 3:]).mean() > 0.1 and np.abs(x_0).max() <= 1
    assert len(calls) == 3 * 19 + 1 and all(cond is labels for *_, cond in calls)
    for x_t, t, _ in calls[::7]:
        eps = forward.eps_from_x0(schedule, x0, x_t, t)[:, :, :3]
        assert 0.4 < eps.std() < 1.8  # of 36 values


@pytest.mark.parametrize("count", [-1, 1001, 1.5, True])
def test_counts_out_of_range_are_refused(count):
    x0, mask = normal(0), np.ones((4, 6, 1), bool)
    with pytest.raises(MinidiffError, match="fixed_point must be an integer from 0 to 1000, not"):
        invert(toy_model, LINEAR, x0, fixed_point=count)
    with pytest.raises(MinidiffError, match="resample must be an integer from 1 to 1000, not"):
        repaint(toy_model, LINEAR, x0, mask, np.random.default_rng(0), resample=count)
    with pytest.raises(MinidiffError, match="steps must be an integer from 1 to the schedule's 1000"):
        invert(toy_model, LINEAR, x0, steps=1001)
    with pytest.raises(MinidiffError, match="steps must be an integer from 1 to the schedule's 1000"):
        repaint(toy_model, LINEAR, x0, mask, np.random.default_rng(0), steps=1001)


def test_slerp():
    a, b = normal(0, (3, 8, 8, 3)), normal(1, (3, 8, 8, 3))
    np.testing.assert_allclose(slerp(a, b, 0.0), a, rtol=0, atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 1.0), b, rtol=0, atol=1e-6)
    middle = slerp(a, b, 0.5)
    assert middle.dtype == np.float32
    norms = [np.linalg.norm(x.reshape(3, -1), axis=1) for x in (a, middle, b)]
    assert np.all(np.abs(norms[1] / ((norms[0] + norms[2]) / 2) - 1) < 0.02)  # linear interpolation would give 0.71
    # halfway along the circle through two unit vectors at a right angle lies (1, 1) / sqrt 2
    one, two = np.zeros((1, 1, 1, 2), np.float32), np.zeros((1, 1, 1, 2), np.float32)
    one[..., 0], two[..., 1] = 1, 1
    np.testing.assert_allclose(slerp(one, two, 0.5).ravel(), [0.5**0.5] * 2, rtol=1e-6)
    np.testing.assert_allclose(slerp(one, two, 1 / 3).ravel(), [np.cos(np.pi / 6), np.sin(np.pi / 6)], rtol=1e-6)


def test_slerp_of_parallel_noise_is_finite():
    a = normal(0)
    np.testing.assert_allclose(slerp(a, a, 0.3), a, rtol=0, atol=1e-6)
    assert np.all(np.isfinite(slerp(a, -a, 0.3)))
