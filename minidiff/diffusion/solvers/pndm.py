"""PNDM: Liu, Ren, Lin, Zhao 2022 (arXiv 2202.09778)."""

import numpy as np

from minidiff.diffusion.forward import x0_and_eps
from minidiff.diffusion.noise_levels import NoiseLevels
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.solvers.loop import Estimate, Noise, Predict, Trajectory
from minidiff.diffusion.steps import ddim_update


def pndm(
    predict: Predict, estimate: Estimate, fresh_noise: Noise, levels: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """PLMS (Liu et al. 2022, eq. 12): DDIM with the Adams-Bashforth combination of the last four predictions.

    The first step has no history: it is repeated with the mean of the predictions at its two ends. diffusers repeats
    it from one stride before the second timestep, which need not be the first timestep.
    """
    history: list[np.ndarray] = []  # the newest first
    stride = levels.stride
    for i, t, t_prev, alpha_bar, alpha_bar_prev in levels.sampler_steps():
        history = [predict(x_t, t), *history[:3]]
        coefs = np.asarray(ADAMS_BASHFORTH[len(history)], history[0].dtype)
        prediction = np.tensordot(coefs, np.stack(history), 1)
        if len(history) == 1 and i > 0:
            x_prev = ddim_update(*estimate(history[0], x_t, i), alpha_bar, alpha_bar_prev)
            prediction = (history[0] + predict(x_prev, t_prev)) / 2
        x0_hat, eps_hat = estimate(prediction, x_t, i)
        if len(history) == 1 and i > 0 and stride:
            t_start = int(t_prev) + stride.length
            x0_hat, eps_hat = x0_and_eps(stride.schedule, prediction, x_t, t_start)
            alpha_bar_prev = stride.alpha_bar_prev(t_start, levels.end)
        x_t = ddim_update(x0_hat, eps_hat, alpha_bar, alpha_bar_prev)
        yield t_prev, x_t, x0_hat


# The coefficients of the last predictions, the newest first, by their number.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
