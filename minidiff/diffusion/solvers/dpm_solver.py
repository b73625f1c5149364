"""DPM-Solver++: Lu, Zhou, Bao, Chen, Li, Zhu 2022 (arXiv 2211.01095)."""

import numpy as np

from minidiff.diffusion.forward import eps_from_x0
from minidiff.diffusion.noise_levels import NoiseLevels
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.solvers.loop import Estimate, Noise, Predict, Trajectory
from minidiff.diffusion.steps import ddim_update, log_snr


def dpmpp_2m(
    predict: Predict, estimate: Estimate, fresh_noise: Noise, levels: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2): x0_hat extrapolated linearly from the last two.

    Linearly in lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), to the middle of the step. The last step is of
    first order, with x0_hat itself, if lambda is infinite at its end, or, for stability, in fewer than 15 steps.
    """
    first_order_end = levels.end == 1 or len(levels.ts) < 15  # as in diffusers
    x0_last, h_last = None, 0.0
    for i, t, t_prev, alpha_bar, alpha_bar_prev in levels.sampler_steps():
        x0_hat, _ = estimate(predict(x_t, t), x_t, i)
        h = log_snr(alpha_bar_prev) - log_snr(alpha_bar)
        extrapolated = x0_hat
        if x0_last is not None and not (i == 0 and first_order_end):
            extrapolated = x0_hat + (h / h_last / 2) * (x0_hat - x0_last)
        eps_hat = eps_from_x0(levels.schedule, extrapolated, x_t, i)
        x_t = ddim_update(extrapolated, eps_hat, alpha_bar, alpha_bar_prev)
        x0_last, h_last = x0_hat, h
        yield t_prev, x_t, x0_hat
