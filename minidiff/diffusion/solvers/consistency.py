"""Multistep consistency sampling: Song, Dhariwal, Chen, Sutskever 2023 (arXiv 2303.01469), algorithm 1.

For consistency models alone (consistency/): one evaluation maps noise to an image. Each further one maps that image
again, with fresh noise of a lower noise level.
"""

import math

import numpy as np

from minidiff.diffusion.consistency.function import boundary
from minidiff.diffusion.noise_levels import NoiseLevels
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.solvers.loop import Estimate, Noise, Predict, Trajectory


def consistency(
    predict: Predict, estimate: Estimate, fresh_noise: Noise, levels: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """x_prev = sqrt(alpha_bar_prev) f(x_t, t) + sqrt(1 - alpha_bar_prev) z; at the end f(x_t, t) itself.

    f(x_t, t) = c_skip x_t + c_out x0_hat is what is yielded as x0_hat.
    """
    for step in levels.sampler_steps():
        x0_hat, _ = estimate(predict(x_t, step.t), x_t, step.i)
        c_skip, c_out = map(float, boundary(levels.trained, step.t))
        f = c_skip * x_t + c_out * x0_hat
        x_t = f
        if step.i > 0:
            x_t = math.sqrt(step.alpha_bar_prev) * f + math.sqrt(1 - step.alpha_bar_prev) * fresh_noise()
        yield step.t_prev, x_t, f
