"""DDIM: Song, Meng, Ermon 2021 (arXiv 2010.02502), and Euler's ancestral sampler (k-diffusion)."""

import numpy as np

from minidiff.diffusion.noise_levels import NoiseLevels
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.solvers.loop import Estimate, Noise, Predict, Trajectory
from minidiff.diffusion.steps import ddim_update


def ddim(
    predict: Predict, estimate: Estimate, fresh_noise: Noise, levels: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """DDIM (Song et al. 2021, eq. 12). With eta = 0 and without clipping it is Euler's method in sigma (eq. 13)."""
    eta = sampler.eta
    for i, t, t_prev, alpha_bar, alpha_bar_prev in levels.sampler_steps():
        x0_hat, eps_hat = estimate(predict(x_t, t), x_t, i)
        z = fresh_noise() if eta > 0 and (alpha_bar_prev < 1 or sampler.as_diffusers) else 0.0
        x_t = ddim_update(x0_hat, eps_hat, alpha_bar, alpha_bar_prev, eta, z)
        yield t_prev, x_t, x0_hat


def euler_ancestral(
    predict: Predict, estimate: Estimate, fresh_noise: Noise, levels: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """Euler's step to below the next noise level, then fresh noise up to it (k-diffusion): DDIM's step with eta = 1."""
    as_ddim = Sampler("ddim", eta=1.0, as_diffusers=sampler.as_diffusers)
    return ddim(predict, estimate, fresh_noise, levels, as_ddim, x_t)
