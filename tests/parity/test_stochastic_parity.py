"""EDM's churn and the Euler-Maruyama method, step by step, against diffusers, with the same noise."""

import diffusers
import numpy as np
import pytest
import torch

from minidiff.diffusion import sde
from minidiff.diffusion.reverse import sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import scaled_linear_schedule

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers on torch
SHAPE = (2, 6, 6, 3)
CHURN, INTERVAL, S_NOISE = 8.0, (0.05, 8.0), 1.003


def toy_model(x_t, t):
    return (np.sin(x_t) * (0.5 + np.asarray(t, np.float32).reshape(-1, 1, 1, 1) / 2000)).astype(np.float32)


class Drawn:
    """Noise from a seed, which is kept."""

    def __init__(self):
        self.rng, self.noise = np.random.default_rng(3), []

    def standard_normal(self, shape=SHAPE, dtype=np.float32):
        self.noise.append(self.rng.standard_normal(shape, dtype=dtype))
        return self.noise[-1]


@pytest.mark.parametrize("steps", [7, 30])
def test_euler_with_churn(steps, monkeypatch):
    """diffusers predicts before it adds the noise; algorithm 2 at x_hat, where we let it have its prediction from."""
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    table = np.sqrt(1 / scheduler.alphas_cumprod.numpy().astype(np.float64) - 1)
    sampler = Sampler("euler", clip=None, churn=CHURN, churn_interval=INTERVAL, churn_noise=S_NOISE)
    drawn = Drawn()
    trajectory = sample(toy_model, scaled_linear_schedule(), SHAPE, drawn, steps, sampler)
    ours = [x_t for _, x_t, _ in trajectory]

    start, *noise = drawn.noise
    module = diffusers.schedulers.scheduling_euler_discrete
    x, raised = torch.from_numpy(start) * scheduler.init_noise_sigma, 0
    for k, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)  # or its step warns
        sigma, z = float(scheduler.sigmas[k]), None
        sigma_hat, x_hat = sigma, x
        if INTERVAL[0] <= sigma <= INTERVAL[1]:
            sigma_hat, z = sigma * (1 + min(CHURN / steps, np.sqrt(2) - 1)), torch.from_numpy(noise[raised])
            x_hat, raised = x + S_NOISE * (sigma_hat**2 - sigma**2) ** 0.5 * z, raised + 1
        t_hat = np.interp(np.log(sigma_hat), np.log(table), np.arange(1000))
        eps_hat = toy_model((x_hat / (sigma_hat**2 + 1) ** 0.5).numpy(), t_hat)
        monkeypatch.setattr(module, "randn_tensor", lambda *_, z=z, **__: z)
        options = dict(s_churn=CHURN, s_tmin=INTERVAL[0], s_tmax=INTERVAL[1], s_noise=S_NOISE, return_dict=False)
        x = scheduler.step(torch.from_numpy(eps_hat), t, x, **options)[0]
        theirs = x.numpy() / np.sqrt(float(scheduler.sigmas[k + 1]) ** 2 + 1)
        np.testing.assert_allclose(ours[k], theirs, rtol=1e-4, atol=1e-5)
    assert raised == len(noise) > steps / 3


def test_euler_maruyama(monkeypatch):
    """A step of the reverse SDE with beta linear in t, as ScoreSdeVpScheduler takes it."""
    scheduler = diffusers.schedulers.ScoreSdeVpScheduler(beta_min=0.1, beta_max=20)
    scheduler.set_timesteps(50)
    z = Drawn().standard_normal()
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(z))
    forward = sde.SDE(lambda x, t: -0.5 * (0.1 + 19.9 * t) * x, lambda t: (0.1 + 19.9 * t) ** 0.5)
    x = Drawn().standard_normal()
    for t in scheduler.timesteps[[0, 20, 45]]:
        eps_hat, t_ours = toy_model(x, 1000 * t), float(t)
        std = np.sqrt(1 - np.exp(-0.5 * 19.9 * t_ours**2 - 0.1 * t_ours))
        reverse = sde.reverse_sde(forward, lambda x, t, eps_hat=eps_hat, std=std: -eps_hat / std)
        ((_, ours),) = sde.euler_maruyama(reverse, x, (t_ours, t_ours - 1 / 50), lambda: z)
        theirs, _ = scheduler.step_pred(torch.from_numpy(eps_hat), torch.from_numpy(x), t)
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)
