"""DDPM: Ho, Jain, Abbeel 2020 (arXiv 2006.11239)."""

import numpy as np

from minidiff.diffusion.noise_levels import NoiseLevels
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.solvers.loop import Estimate, Noise, Predict, Trajectory
from minidiff.diffusion.steps import diffusers_last_std, p_sample


def ddpm(
    predict: Predict, estimate: Estimate, fresh_noise: Noise, levels: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """DDPM algorithm 2. The last step adds no noise; in diffusers, only if it is from t = 0."""
    for i, t, t_prev, *_ in levels.sampler_steps():
        prediction = predict(x_t, t)
        C = x_t.shape[-1]  # a learned variance is in the channels from there on
        x0_hat, _ = estimate(prediction[..., :C], x_t, i)
        z = fresh_noise() if i > 0 or (sampler.as_diffusers and t > 0) else 0.0
        x_t = p_sample(levels.schedule, prediction, x_t, i, z, sampler.variance, sampler.clip)
        if i == 0 and sampler.as_diffusers and sampler.variance != "fixed_small":
            x_t = x_t + diffusers_last_std(levels.schedule, prediction[..., C:], sampler.variance) * z
        yield t_prev, x_t, x0_hat
