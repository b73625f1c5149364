"""EDM: Karras, Aittala, Aila, Laine 2022 (arXiv 2206.00364)."""

import numpy as np

from minidiff.diffusion.forward import x0_from_eps
from minidiff.diffusion.noise_levels import NoiseLevels
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.solvers.loop import Estimate, Noise, Predict, Trajectory
from minidiff.diffusion.steps import ddim_update


def heun(
    predict: Predict, estimate: Estimate, fresh_noise: Noise, levels: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """Heun's method (Karras et al. 2022, algorithm 1): Euler's step, repeated with the mean slope of its two ends.

    x = x_t / sqrt(alpha_bar) = x0 + sigma eps has the slope d = (x - D(x; sigma)) / sigma over sigma (eq. 3 and 4): the
    denoiser D is x0_hat, and so d is eps_hat. `ddim_update` is x + (sigma_prev - sigma) d, in terms of x_t. Rectified
    flow is solved over its t (`heun_over_t`).
    """
    if levels.schedule.prediction_type == "flow":
        yield from heun_over_t(predict, estimate, levels, x_t)
        return
    for i, t, t_prev, alpha_bar, alpha_bar_prev in levels.sampler_steps():
        # the slope at sigma: d = (x - D(x; sigma)) / sigma
        x0_hat, d = estimate(predict(x_t, t), x_t, i)
        # Euler's step: x_prev = x + (sigma_prev - sigma) d
        x_prev = ddim_update(x0_hat, d, alpha_bar, alpha_bar_prev)
        if i > 0:  # sigma_prev > 0
            # the slope at sigma_prev: d_prev = (x_prev - D(x_prev; sigma_prev)) / sigma_prev
            x0_hat, d_prev = estimate(predict(x_prev, t_prev), x_prev, i - 1)
            # the step again, from x, with the mean of both slopes: x_prev = x + (sigma_prev - sigma) (d + d_prev) / 2
            mean = (d + d_prev) / 2
            x_prev = ddim_update(x0_from_eps(levels.schedule, mean, x_t, i), mean, alpha_bar, alpha_bar_prev)
        x_t = x_prev
        yield t_prev, x_t, x0_hat


def heun_over_t(predict: Predict, estimate: Estimate, levels: NoiseLevels, x_t: np.ndarray) -> Trajectory:
    """Heun's method for rectified flow, over t: the slope dx/dt of x = (1 - t) x0 + t eps is the prediction itself."""
    for i, t, t_prev, alpha_bar, alpha_bar_prev in levels.sampler_steps():
        v = predict(x_t, t)
        x0_hat, eps_hat = estimate(v, x_t, i)
        x_prev = ddim_update(x0_hat, eps_hat, alpha_bar, alpha_bar_prev)  # Euler's step: x + (t_prev - t) v
        if i > 0:
            mean = (v + predict(x_prev, t_prev)) / 2
            x0_hat, eps_hat = estimate(mean, x_t, i)
            x_prev = ddim_update(x0_hat, eps_hat, alpha_bar, alpha_bar_prev)
        x_t = x_prev
        yield t_prev, x_t, x0_hat
