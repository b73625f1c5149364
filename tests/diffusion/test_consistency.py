"""Consistency functions, the loss of consistency tuning, and the sampler."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from minidiff.diffusion.consistency.function import boundary, coefficients, consistency
from minidiff.diffusion.consistency.tuning import HUBER, consistency_loss, earlier_time, sample_t
from minidiff.diffusion.continuous import EDM, Flow
from minidiff.diffusion.forward import q_sample, target, x0_and_eps
from minidiff.diffusion.noise_levels import (
    consistency_times,
    latent_consistency_timesteps,
    max_steps,
    noise_levels,
    sigmas_of,
)
from minidiff.diffusion.reverse import sample
from minidiff.diffusion.sampler import CONSISTENCY_SAMPLER, Sampler
from minidiff.diffusion.schedule import cosine_schedule, linear_schedule, scaled_linear_schedule
from minidiff.engine.backend import get_backend
from minidiff.engine.functional import affine
from minidiff.engine.tensor import Function, Tensor
from minidiff.errors import MinidiffError

SHAPE = (4, 3, 3, 2)
SCHEDULES = {
    "epsilon": linear_schedule(),
    "sample": cosine_schedule(prediction_type="sample"),
    "v_prediction": cosine_schedule(prediction_type="v_prediction"),
    "edm": EDM(),
    "flow": Flow(),
}
ALL = pytest.mark.parametrize("name", SCHEDULES)


def normal(seed, shape=SHAPE, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape, dtype=dtype)


def times(name, n=4):
    return {"edm": np.array([0.05, 0.4, 3.0, 80.0]), "flow": np.array([0.01, 0.3, 0.7, 1.0])}.get(
        name, np.array([3, 250, 600, 999])
    )[:n]


@ALL
def test_with_the_true_target_f_is_x0(name):
    """f(x_t, t) = c_skip x_t + c_out x0 if the network predicts its target exactly."""
    schedule, t = SCHEDULES[name], times(name)
    x0, eps = normal(0, dtype=np.float64), normal(1, dtype=np.float64)
    x_t = q_sample(schedule, x0, t, eps)
    c_skip, c_out = (c.reshape(-1, 1, 1, 1) for c in boundary(schedule, t))
    f = consistency(schedule, target(schedule, x0, t, eps), x_t, t)
    np.testing.assert_allclose(f, c_skip * x_t + c_out * x0, atol=1e-6 if name == "edm" else 1e-8)
    assert (np.abs(f - x0)[1:] < 1e-3).all()


@ALL
def test_at_the_boundary_f_is_x_whatever_the_network_predicts(name):
    schedule, x = SCHEDULES[name], normal(0, dtype=np.float64)
    t = {"edm": np.full(4, 1e-7), "flow": np.zeros(4)}.get(name, np.zeros(4, np.int64))
    f = consistency(schedule, 5 * normal(1, dtype=np.float64), x, t)
    np.testing.assert_allclose(f, x, rtol=0, atol=1e-5 if name == "edm" else 1e-12)


def test_boundary_scalings_are_those_of_latent_consistency_models():
    c_skip, c_out = boundary(SCHEDULES["v_prediction"], np.array([0, 1, 999]))
    np.testing.assert_allclose(c_skip, [1, 0.25 / 100.25, 0.25 / (9990**2 + 0.25)], rtol=1e-12)
    np.testing.assert_allclose(c_out, [0, 10 / np.sqrt(100.25), 9990 / np.sqrt(9990**2 + 0.25)], rtol=1e-12)


@ALL
def test_f_is_affine_in_the_prediction(name):
    schedule, t = SCHEDULES[name], times(name)
    x_t, F = normal(0, dtype=np.float64), normal(1, dtype=np.float64)
    A, B = coefficients(schedule, t)
    c_skip, c_out = (c.reshape(-1, 1, 1, 1) for c in boundary(schedule, t))
    np.testing.assert_allclose(A * x_t + B * F, c_skip * x_t + c_out * x0_and_eps(schedule, F, x_t, t)[0], rtol=1e-9)


@pytest.mark.parametrize("name", ["v_prediction", "flow", "edm"])
def test_the_gap_halves_from_stage_to_stage(name):
    schedule, t = SCHEDULES[name], times(name)
    gaps = [t - earlier_time(schedule, t, stage) for stage in (1, 2, 3)]
    if name == "v_prediction":  # timesteps 3, 250, 600, 999; r is rounded down, and 0 for 3
        np.testing.assert_array_equal(gaps, [[3, 125, 300, 500], [3, 63, 150, 250], [3, 32, 75, 125]])
    else:
        np.testing.assert_allclose([gap[1:] for gap in gaps], [t[1:] / 2, t[1:] / 4, t[1:] / 8])
        np.testing.assert_allclose(t[0] - gaps[0][0], 0.002 if name == "edm" else 0)  # the smallest time


def test_the_gap_is_at_least_a_timestep():
    t = np.arange(1, 1000)
    np.testing.assert_array_equal(earlier_time(SCHEDULES["sample"], t, 20), np.where(t <= 100, 0, t - 1))


@ALL
def test_times_lie_above_the_boundary_and_within_the_schedule(name):
    schedule = SCHEDULES[name]
    t = sample_t(schedule, np.random.default_rng(0), 20_000)
    low, high = {"edm": (0, 80), "flow": (0, 1)}.get(name, (1, 999))
    assert (t > 0).all() and t.max() <= high and (t >= low).all()
    schedule.alpha_bar(t)  # raises for a t out of range
    if name == "edm":
        assert abs(np.log(t).mean() + 1.1) < 0.1 and abs(np.log(t).std() - 2) < 0.1
    else:
        assert abs(t.mean() / high - 0.5) < 0.01


class Times(Function):
    """w x for one weight w, (1,)."""

    def __init__(self, x):
        self.x = x

    def forward(self, w):
        return w * self.x

    def backward(self, dy):
        return ((dy * self.x).sum().reshape(1),)


class Scaled:
    """A network of one weight, w x_t + 0.1, which records the times of its evaluations and their random numbers."""

    def __init__(self):
        self.w = Tensor(np.full((1,), 0.7, np.float32), get_backend("numpy"), requires_grad=True)
        self.times, self.randoms = [], []

    def __call__(self, x_t, t, rng=None):
        self.times.append(t)
        if rng is not None:
            self.randoms.append(rng.standard_normal(3))
        return affine(Times(x_t)(self.w), 1.0, 0.1)


@ALL
def test_loss_and_gradient_are_those_of_torch_in_float64(name):
    """Written down again, with f(x_r, r) and the weights detached: a gradient through either would differ."""
    schedule, t = SCHEDULES[name], times(name)
    r = earlier_time(schedule, t, 2)
    x0, eps, network = normal(0), normal(1), Scaled()
    recorded = []
    loss = consistency_loss(network, schedule, x0, (t, r), eps, each=recorded.append)
    loss.backward()

    w = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)

    def f(x, time):
        A, B = coefficients(schedule, time)
        return torch.from_numpy(A) * torch.from_numpy(x) + torch.from_numpy(B) * (w * torch.from_numpy(x) + 0.1)

    x_r, x_t = (q_sample(schedule, x0.astype(np.float64), time, eps.astype(np.float64)) for time in (r, t))
    difference = f(x_t, t) - f(x_r, r).detach()
    d2 = (difference**2).mean((1, 2, 3))
    gap = torch.from_numpy((t - r) / (1 if name in ("edm", "flow") else 1000))
    alpha_bar = schedule.alpha_bar(t)
    b = np.sqrt(alpha_bar * (1 - alpha_bar)) / np.abs(coefficients(schedule, t)[1].ravel())
    theirs = (torch.from_numpy(b) * d2 / (gap * (d2.detach() + HUBER**2).sqrt())).mean()
    theirs.backward()
    np.testing.assert_allclose(float(loss.numpy()), theirs.item(), rtol=2e-4)
    np.testing.assert_allclose(network.w.grad, w.grad.numpy(), rtol=2e-4)
    assert [list(time) for time in network.times] == [list(r), list(t)]
    np.testing.assert_allclose(recorded[0], (d2.detach() / torch.from_numpy(coefficients(schedule, t)[1].ravel() ** 2)),
                               rtol=2e-4)  # fmt: skip


def test_both_evaluations_have_the_same_dropout_and_steps_differ():
    network, schedule = Scaled(), SCHEDULES["v_prediction"]
    t, rng = times("v_prediction"), np.random.default_rng(3)
    for _ in range(2):
        consistency_loss(network, schedule, normal(0), (t, t - 1), normal(1), rng=rng)
    first, again, other, _ = network.randoms
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, [999]), (2, [999, 499]), (3, [999, 679, 339]), (4, [999, 759, 499, 259])]
)
def test_timesteps_of_latent_consistency_models(steps, expected):
    assert latent_consistency_timesteps(1000, steps).tolist() == expected


def test_sigmas_fall_from_25_towards_1_evenly_on_a_log_scale():
    np.testing.assert_allclose(consistency_times(EDM(), 4), [25, 25**0.75, 5, 25**0.25])
    np.testing.assert_allclose(consistency_times(Flow(), 2), [25 / 26, 5 / 6])
    np.testing.assert_allclose(consistency_times(EDM(sigma_max=10.0), 2), [10, 2])
    schedule = cosine_schedule(1000)
    assert consistency_times(schedule, 2).tolist() == [973, 872]
    np.testing.assert_allclose(sigmas_of(schedule)[[973, 872]], [25, 5], rtol=0.02)
    assert consistency_times(scaled_linear_schedule(), 1).tolist() == [999]  # its largest sigma is 14.6


@pytest.mark.parametrize("schedule", [cosine_schedule(20), linear_schedule(60), cosine_schedule(1000)])
def test_timesteps_are_all_different(schedule):
    for steps in range(1, max_steps(schedule, CONSISTENCY_SAMPLER) + 1):
        ts = consistency_times(schedule, steps)
        assert len(ts) == steps and (np.diff(ts) < 0).all() and ts[-1] >= 0


def test_spacing_chooses_the_times():
    schedule = SCHEDULES["sample"]
    assert noise_levels(schedule, 2, CONSISTENCY_SAMPLER).ts.tolist() == consistency_times(schedule, 2).tolist()
    for sampler in (Sampler("consistency"), replace(CONSISTENCY_SAMPLER, as_diffusers=True)):
        assert noise_levels(schedule, 2, sampler).ts.tolist() == [999, 499]
    with pytest.raises(MinidiffError, match="spacing 'log_sigma' is unknown: use one of trailing, leading, linspace"):
        Sampler("ddim", "log_sigma")


def test_steps_out_of_range_are_refused():
    sampler = Sampler("consistency")
    assert (max_steps(SCHEDULES["sample"], sampler), max_steps(cosine_schedule(20), sampler)) == (50, 20)
    assert max_steps(SCHEDULES["edm"], sampler) == 50
    with pytest.raises(MinidiffError, match="from 1 to 50 for consistency, not 51"):
        consistency_times(SCHEDULES["edm"], 51)
    for steps in (0, 51, 1.5):
        with pytest.raises(MinidiffError, match="steps must be an integer from 1 to 50 for consistency"):
            noise_levels(SCHEDULES["sample"], steps, sampler)


@ALL
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_sampler_is_algorithm_1(name, steps):
    """x = f(x_T, T); then, for every further t, x_t = q_sample(x, t, z) and x = f(x_t, t)."""
    schedule = SCHEDULES[name]

    def model(x_t, t):
        return np.sin(x_t) * 0.5

    sampler = replace(CONSISTENCY_SAMPLER, clip=None)
    trajectory = list(sample(model, schedule, SHAPE, np.random.default_rng(5), steps, sampler))
    rng, levels = np.random.default_rng(5), noise_levels(schedule, steps, sampler)
    x, x_t = None, np.float32(levels.start) * rng.standard_normal(SHAPE, dtype=np.float32)
    for k, t in enumerate(levels.ts):
        if x is not None:
            x_t = q_sample(schedule, x, np.full(4, t), rng.standard_normal(SHAPE, dtype=np.float32))
        x = consistency(schedule, model(x_t, t), x_t, np.full(4, t))
        np.testing.assert_allclose(trajectory[k][2], x, rtol=1e-4, atol=1e-4 * np.abs(x).max())
    assert len(trajectory) == steps and trajectory[-1][0] == -1
    np.testing.assert_array_equal(trajectory[-1][1], trajectory[-1][2])


def test_the_sampler_draws_one_noise_a_step():
    ours, rng = np.random.default_rng(5), np.random.default_rng(5)
    list(sample(lambda x_t, t: x_t, SCHEDULES["sample"], SHAPE, ours, 3, "consistency"))
    rng.standard_normal((3, *SHAPE), dtype=np.float32)
    assert ours.bit_generator.state == rng.bit_generator.state


def test_a_step_is_one_evaluation():
    count = []
    list(sample(lambda x_t, t: count.append(0) or x_t, SCHEDULES["sample"], SHAPE, np.random.default_rng(0), 3,
                "consistency"))  # fmt: skip
    assert len(count) == 3
