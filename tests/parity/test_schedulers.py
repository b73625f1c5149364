"""Schedules, forward diffusion and single and many reverse steps against diffusers' schedulers.

Arrays go to torch as they are, (N, H, W, C): schedulers work elementwise. Tables are compared first;
then our float64 ones replace diffusers' float32 ones, whose rounding (1e-6, and 1e-4 over a whole trajectory) would
hide small mistakes in the steps. One trajectory is compared with unmodified diffusers.
"""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from minidiff.diffusion import forward, reverse
from minidiff.diffusion.noise_levels import timesteps
from minidiff.diffusion.schedule import (
    Schedule,
    cosine_schedule,
    linear_schedule,
    rescale_zero_terminal_snr,
    respace,
    scaled_linear_schedule,
    sigmoid_schedule,
)
from minidiff.diffusion.steps import ddim_step, p_sample
from minidiff.formats.schedulers import schedule_from_config, schedule_to_config

ULP = 2.0**-24  # half a unit in the last place of float32, relative
SHAPE = (2, 3, 5, 1)
PREDICTION_TYPES = ["epsilon", "sample", "v_prediction"]
MAKERS = [linear_schedule, scaled_linear_schedule, cosine_schedule, sigmoid_schedule]


def normal(seed):
    return np.random.default_rng(seed).standard_normal(SHAPE)


def theirs(kind, schedule: Schedule, exact=True, **options):
    """diffusers' scheduler for our schedule; exact: with our float64 tables in place of its own."""
    scheduler = kind.from_config(schedule_to_config(schedule) | {"timestep_spacing": "trailing"} | options)
    if exact:
        scheduler.alphas_cumprod = torch.from_numpy(schedule.alphas_cumprod.copy())
        scheduler.betas = torch.from_numpy(schedule.betas.copy())
    return scheduler


def from_seed(seed, dtype=torch.float64):
    """A generator for diffusers, and the noise it will draw first."""
    z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return torch.Generator().manual_seed(seed), z.numpy()


def product_tolerance(schedule):
    """Relative error of a product of float32 alphas: each is off by up to an ULP, at random; four sigmas."""
    return 4 * np.sqrt(np.cumsum((ULP / schedule.alphas) ** 2)) + ULP


@pytest.mark.parametrize("T", [1, 10, 1000])
@pytest.mark.parametrize("make", MAKERS)
def test_betas_and_alphas_cumprod(make, T):
    ours = make(T)
    numbers = {} if ours.beta_start is None else {"beta_start": ours.beta_start, "beta_end": ours.beta_end}
    scheduler = DDPMScheduler(T, beta_schedule=ours.name, **numbers)
    np.testing.assert_allclose(scheduler.betas.numpy(), ours.betas, rtol=8 * ULP)  # a handful of roundings each
    error = np.abs(scheduler.alphas_cumprod.numpy() / ours.alphas_cumprod - 1)
    assert np.all(error <= product_tolerance(ours))


@pytest.mark.parametrize("make", MAKERS)
def test_zero_terminal_snr(make):
    before = make(1000, prediction_type="v_prediction")
    ours = rescale_zero_terminal_snr(before)
    scheduler = theirs(DDPMScheduler, before, exact=False, rescale_betas_zero_snr=True)
    assert scheduler.alphas_cumprod[-1] == ours.alphas_cumprod[-1] == 0
    # Two products and the rescaling between them, each off by at most this much of a number below 1.
    atol = 3 * np.max(product_tolerance(before) * before.alphas_cumprod)
    np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), ours.alphas_cumprod, rtol=0, atol=atol)


@pytest.mark.parametrize("make", MAKERS)
def test_diffusers_reads_our_configuration_and_we_read_its(make, tmp_path):
    ours = make(100, prediction_type="v_prediction")
    for schedule in (ours, rescale_zero_terminal_snr(ours)):
        (tmp_path / "scheduler_config.json").write_text(json.dumps(schedule_to_config(schedule)))
        scheduler = DDPMScheduler.from_pretrained(tmp_path)
        np.testing.assert_allclose(scheduler.betas.numpy(), schedule.betas, rtol=8 * ULP)
        again = schedule_from_config(dict(scheduler.config))
        np.testing.assert_array_equal(again.betas, schedule.betas)
        assert again.prediction_type == scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("T", [1, 2, 10, 1000])
def test_timesteps_are_those_of_linspace(T):
    scheduler = DDPMScheduler(T, timestep_spacing="linspace")
    assert timesteps(T, 1, "linspace").tolist() == [T - 1]  # where diffusers has t = 0, which has almost no noise
    for steps in range(2, T + 1):
        scheduler.set_timesteps(steps)
        ours = timesteps(T, steps, "linspace")
        np.testing.assert_array_equal(ours, scheduler.timesteps.numpy())
        assert ours[0] == T - 1 and ours[-1] == 0 and np.all(np.diff(ours) < 0)


@pytest.mark.parametrize("make", MAKERS)
def test_q_sample_and_v(make):
    schedule = make(1000)
    scheduler = theirs(DDPMScheduler, schedule)
    x0, eps, t = normal(0), normal(1), np.array([0, 999])
    arrays = torch.from_numpy(x0), torch.from_numpy(eps), torch.from_numpy(t)
    x_t, v = scheduler.add_noise(*arrays), scheduler.get_velocity(*arrays)
    np.testing.assert_allclose(forward.q_sample(schedule, x0, t, eps), x_t, rtol=0, atol=1e-14)
    np.testing.assert_allclose(forward.v_from_x0_eps(schedule, x0, eps, t), v, rtol=0, atol=1e-14)


def test_forward_works_on_the_arrays_of_another_module():
    """torch stands in for cupy: an array module that cannot be mixed with NumPy."""
    schedule = linear_schedule(prediction_type="v_prediction")
    x0, eps, t = normal(0), normal(1), np.array([3, 700])
    x_t = forward.q_sample(schedule, torch.from_numpy(x0), t, torch.from_numpy(eps))
    x0_hat, _ = forward.x0_and_eps(schedule, torch.from_numpy(eps), x_t, t)
    assert isinstance(x0_hat, torch.Tensor)
    expected = forward.q_sample(schedule, x0, t, eps)
    np.testing.assert_allclose(x_t, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(x0_hat, forward.x0_and_eps(schedule, eps, expected, t)[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("t", [0, 1, 500, 999])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_p_sample(prediction_type, variance, clip, t):
    schedule = linear_schedule(prediction_type=prediction_type)
    scheduler = theirs(DDPMScheduler, schedule, variance_type=variance, clip_sample=clip)
    eps_hat, x_t = normal(0), normal(1)
    generator, z = from_seed(2)
    x_prev = scheduler.step(torch.from_numpy(eps_hat), t, torch.from_numpy(x_t), generator).prev_sample
    ours = p_sample(schedule, eps_hat, x_t, t, z, variance, 1.0 if clip else None)
    # diffusers has beta from 1 - alpha_bar / alpha_bar_prev, 1e-4 +- 1e-16: 1e-12 relative, of numbers below 10.
    np.testing.assert_allclose(ours, x_prev, rtol=0, atol=1e-11)


@pytest.mark.parametrize("t", [0, 1, 500, 999])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_p_sample_with_a_learned_variance(prediction_type, t):
    schedule = linear_schedule(prediction_type=prediction_type)
    scheduler = theirs(DDPMScheduler, schedule, variance_type="learned_range", clip_sample=False)
    prediction, v, x_t = normal(0), normal(3), normal(1)
    generator, z = from_seed(2)
    both = torch.from_numpy(np.concatenate([prediction, v], 1))  # axis 1 holds diffusers' channels
    x_prev = scheduler.step(both, t, torch.from_numpy(x_t), generator).prev_sample
    ours = p_sample(schedule, np.concatenate([prediction, v], -1), x_t, t, z, "learned_range")
    # as above; v, which reaches 4, multiplies the relative error of log beta
    np.testing.assert_allclose(ours, x_prev, rtol=0, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 4, 50])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_p_sample_over_long_steps(prediction_type, steps):
    """A respaced schedule is diffusers' scheduler after set_timesteps."""
    schedule = linear_schedule(prediction_type=prediction_type)
    scheduler = theirs(DDPMScheduler, schedule)
    ts = timesteps(1000, steps)
    scheduler.set_timesteps(timesteps=ts.tolist())
    short = respace(schedule, ts)
    eps_hat, x_t = normal(0), normal(1)
    for i, t in enumerate(ts[::-1].tolist()):
        generator, z = from_seed(i)
        x_prev = scheduler.step(torch.from_numpy(eps_hat), t, torch.from_numpy(x_t), generator).prev_sample
        ours = p_sample(short, eps_hat, x_t, i, z, clip=1.0)
        # diffusers raises a variance of 0 to 1e-20 unless t is 0: 1e-10 z, and |z| < 5.
        np.testing.assert_allclose(ours, x_prev, rtol=0, atol=5e-10)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_ddim_step(prediction_type, clip, eta, zero_snr):
    schedule = scaled_linear_schedule(prediction_type=prediction_type)
    if zero_snr and prediction_type != "epsilon":
        schedule = rescale_zero_terminal_snr(schedule)
    scheduler = theirs(DDIMScheduler, schedule, clip_sample=clip)
    for steps, t in [(1000, 0), (1000, 1), (50, 0), (50, 20), (50, 500), (10, 999), (1000, 998)]:
        scheduler.set_timesteps(steps)
        t_prev = max(-1, t - 1000 // steps)
        eps_hat, x_t, z = normal(t), normal(1), normal(2)
        arrays = torch.from_numpy(eps_hat), t, torch.from_numpy(x_t)
        x_prev = scheduler.step(*arrays, eta=eta, variance_noise=torch.from_numpy(z)).prev_sample
        ours = ddim_step(schedule, eps_hat, x_t, t, t_prev, eta, z, 1.0 if clip else None)
        # The root of 1 - alpha_bar_prev - sigma^2 may be one of a difference that is all rounding: sqrt(1e-16).
        np.testing.assert_allclose(ours, x_prev, rtol=0, atol=1e-11 if eta < 1 else 1e-7)


class TorchNoise:
    """torch's random numbers, for `sample` to draw in the order in which diffusers draws them."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def standard_normal(self, shape, dtype):
        assert dtype == np.float32
        return torch.randn(shape, generator=self.generator).numpy()


def toy_model(x_t, t):
    """Deterministic, of x_t and t, and like a noise predictor in that it takes most of the noise away."""
    return (np.sin(x_t) * (0.5 + np.asarray(t).reshape(-1, 1, 1, 1) / 2000)).astype(np.float32)


def both_trajectories(schedule, scheduler, steps):
    """Both ddpm trajectories from the same noise: yields t, then ours and theirs of x_t, and of x0_hat."""
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator)
    trajectory = reverse.sample(toy_model, schedule, SHAPE, TorchNoise(0), steps=steps, sampler="ddpm")
    for t, (t_reached, x_t, x0_hat) in zip(scheduler.timesteps, trajectory, strict=True):
        eps_hat = torch.from_numpy(toy_model(x.numpy(), t))
        x, estimate = scheduler.step(eps_hat, t, x, generator, return_dict=False)
        assert t_reached == scheduler.previous_timestep(t)
        yield int(t), (x_t, x.numpy()), (x0_hat, estimate.numpy())


def trajectory_tolerance(steps):
    """Every step rounds values below 4 about three times; their errors add up at random."""
    return 3 * 4 * ULP * np.sqrt(steps)


@pytest.mark.parametrize("steps", [10, 50, 1000])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_whole_ddpm_trajectory(prediction_type, steps):
    schedule = linear_schedule(prediction_type=prediction_type)
    atol = trajectory_tolerance(steps)
    for t, x_t, x0_hat in both_trajectories(schedule, theirs(DDPMScheduler, schedule), steps):
        np.testing.assert_allclose(*x_t, rtol=0, atol=atol)
        np.testing.assert_allclose(*x0_hat, rtol=0, atol=atol / np.sqrt(schedule.alphas_cumprod[t]))


def test_whole_ddpm_trajectory_of_unmodified_diffusers():
    schedule = linear_schedule()
    scheduler = theirs(DDPMScheduler, schedule, exact=False)
    *_, (_, x_t, _) = both_trajectories(schedule, scheduler, 1000)
    # Its beta is 1 - alpha_bar / alpha_bar_prev in float32, off by 1.2e-7. Near the end, where beta is 1e-4, that moves
    # sigma by 6e-6 and x_t by 2.4e-5 (z < 4); some fifty such steps add up at random to seven times that.
    np.testing.assert_allclose(*x_t, rtol=0, atol=7 * 2.4e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [10, 50])
def test_whole_ddim_trajectory(steps, eta):
    """Over diffusers' own timesteps, those of "leading": the only ones where its rule t - T // steps gives the next."""
    schedule = linear_schedule()
    scheduler = theirs(DDIMScheduler, schedule, timestep_spacing="leading")
    scheduler.set_timesteps(steps)
    ts = [*scheduler.timesteps.tolist(), -1]
    x_t = normal(0).astype(np.float32)
    x = torch.from_numpy(x_t)
    for t, t_prev in pairwise(ts):
        z = normal(t).astype(np.float32)
        eps_hat = torch.from_numpy(toy_model(x.numpy(), t))
        x = scheduler.step(eps_hat, t, x, eta=eta, variance_noise=torch.from_numpy(z)).prev_sample
        x_t = ddim_step(schedule, toy_model(x_t, t), x_t, t, t_prev, eta, z, clip=1.0)
        np.testing.assert_allclose(x_t, x.numpy(), rtol=0, atol=trajectory_tolerance(steps))
