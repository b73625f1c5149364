"""The Euler-Maruyama method for the reverse SDE: Song et al. 2021 (arXiv 2011.13456), section 4.1."""

import math

import numpy as np

from minidiff.diffusion import sde
from minidiff.diffusion.noise_levels import NoiseLevels
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.solvers.loop import Estimate, Noise, Predict, Trajectory

# The variance-preserving SDE (ibid., eq. 11) over the time -log(alpha_bar), in which beta is 1.
VP = sde.SDE(lambda x, t: -0.5 * x, lambda t: 1.0)


def euler_maruyama(
    predict: Predict, estimate: Estimate, fresh_noise: Noise, levels: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """x + B (x / 2 + score) + sqrt(B) z, where B = log(alpha_bar_prev / alpha_bar) is the step's integral of beta.

    The score is -eps_hat / sqrt(1 - alpha_bar). The last step is to x0_hat if it ends at alpha_bar = 1.
    """
    for i, t, t_prev, alpha_bar, alpha_bar_prev in levels.sampler_steps():
        x0_hat, eps_hat = estimate(predict(x_t, t), x_t, i)
        score = -eps_hat / math.sqrt(1 - alpha_bar)
        reverse = sde.reverse_sde(VP, lambda x, t, score=score: score)
        times = (-math.log(alpha_bar), -math.log(alpha_bar_prev))
        x_t = x0_hat if alpha_bar_prev == 1 else next(sde.euler_maruyama(reverse, x_t, times, fresh_noise))[1]
        yield t_prev, x_t, x0_hat
