"""DPM-Solver++: Lu, Zhou, Bao, Chen, Li, Zhu 2022 (arXiv 2211.01095), for the ODE and for the reverse SDE.

Both are solved over lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), exactly but for x0_hat, which changes along
the step. With a constant x0_hat the solution of the ODE is DDIM's step, and that of the SDE DDIM's with eta = 1.
"""

import math

import numpy as np

from minidiff.diffusion.forward import eps_from_x0
from minidiff.diffusion.noise_levels import NoiseLevels
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.solvers.loop import Estimate, Noise, Predict, Trajectory
from minidiff.diffusion.steps import ddim_update, log_snr


def dpmpp_2m(
    predict: Predict, estimate: Estimate, fresh_noise: Noise, levels: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """DPM-Solver++ 2M (algorithm 2) and SDE-DPM-Solver++ 2M: x0_hat extrapolated linearly from the last two.

    Linearly in lambda, to the middle of the step. The last step is of first order, with x0_hat itself, if lambda is
    infinite at its end, or, for stability, in fewer than 15 steps.
    """
    eta = 1.0 if sampler.name == "dpmpp_2m_sde" else 0.0
    first_order_end = levels.end == 1 or len(levels.ts) < 15  # as in diffusers
    x0_last, h_last = None, 0.0
    for i, t, t_prev, alpha_bar, alpha_bar_prev in levels.sampler_steps():
        x0_hat, _ = estimate(predict(x_t, t), x_t, i)
        h = log_snr(alpha_bar_prev) - log_snr(alpha_bar)
        extrapolated = x0_hat
        if x0_last is not None and not (i == 0 and first_order_end):
            extrapolated = x0_hat + (h / h_last / 2) * (x0_hat - x0_last)
        eps_hat = eps_from_x0(levels.schedule, extrapolated, x_t, i)
        z = fresh_noise() if eta > 0 and (alpha_bar_prev < 1 or sampler.as_diffusers) else 0.0
        x_t = ddim_update(extrapolated, eps_hat, alpha_bar, alpha_bar_prev, eta, z)
        x0_last, h_last = x0_hat, h
        yield t_prev, x_t, x0_hat


def dpmpp_sde(
    predict: Predict, estimate: Estimate, fresh_noise: Noise, levels: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """SDE-DPM-Solver++ of second order in single steps (k-diffusion's dpmpp_sde with r = 1/2 and eta = 1).

    A step to the middle of the step, where sigma is the geometric mean of those of its ends, and the whole step with
    the x0_hat of there. The last step is of first order if sigma is 0 at its end.
    """
    for i, t, t_prev, alpha_bar, alpha_bar_prev in levels.sampler_steps():
        x0_hat, eps_hat = estimate(predict(x_t, t), x_t, i)
        z: np.ndarray | float = 0.0
        if alpha_bar_prev < 1:
            sigma, sigma_prev = math.sqrt(1 / alpha_bar - 1), math.sqrt(1 / alpha_bar_prev - 1)
            middle = levels.between(math.sqrt(sigma * sigma_prev))
            first, second = fresh_noise(), fresh_noise()  # of the two halves of the step
            x_mid = ddim_update(x0_hat, eps_hat, alpha_bar, middle.alpha_bar, 1.0, first)
            x0_hat, _ = estimate(predict(x_mid, middle.t), x_mid, middle.i, middle.schedule)
            eps_hat = eps_from_x0(levels.schedule, x0_hat, x_t, i)
            z = step_noise(first, second, sigma, sigma_prev)
        x_t = ddim_update(x0_hat, eps_hat, alpha_bar, alpha_bar_prev, 1.0, z)
        yield t_prev, x_t, x0_hat


def step_noise(first: np.ndarray, second: np.ndarray, sigma: float, sigma_prev: float) -> np.ndarray:
    """The noise of a whole step from that of its halves, all standard normal: both are of one Brownian path.

    The noise of a step has the variance (1 - alpha_bar_prev) (1 - (sigma_prev / sigma)^2). Of it, the fraction
    sigma_prev / (sigma + sigma_prev) comes from the first half, whose noise the second half scales down.
    """
    total = sigma + sigma_prev
    return math.sqrt(sigma_prev / total) * first + math.sqrt(sigma / total) * second
