"""EDM: Karras, Aittala, Aila, Laine 2022 (arXiv 2206.00364), whose x = x_t / sqrt(alpha_bar) = x0 + sigma eps.

Over sigma, x has the slope d = (x - D(x; sigma)) / sigma (eq. 3 and 4): the denoiser D is x0_hat, and so d is eps_hat.
`ddim_update` is the step x + (sigma_prev - sigma) d, in terms of x_t.
"""

import math

import numpy as np

from minidiff.diffusion.forward import x0_from_eps
from minidiff.diffusion.noise_levels import Level, NoiseLevels, SamplerStep
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.solvers.loop import Estimate, Noise, Predict, Trajectory
from minidiff.diffusion.steps import ddim_update


def churned(
    x_t: np.ndarray, step: SamplerStep, fresh_noise: Noise, levels: NoiseLevels, sampler: Sampler
) -> tuple[np.ndarray, Level]:
    """The noise that algorithm 2 adds before a step: x_hat, and the noise level sigma_hat that it has.

    x_hat = x + sqrt(sigma_hat^2 - sigma^2) S_noise z with sigma_hat = (1 + gamma) sigma. Without churn both are as
    they are.
    """
    here = Level(step.t, step.alpha_bar, levels.schedule, step.i)
    sigma_hat = math.inf if levels.sigma_hat is None else levels.sigma_hat[step.i]
    sigma = math.sqrt(1 / step.alpha_bar - 1) if step.alpha_bar else math.inf
    if levels.sigma_hat is None or sigma_hat <= sigma:
        return x_t, here
    raised = levels.between(sigma_hat)
    ratio = raised.alpha_bar / step.alpha_bar
    x_hat = math.sqrt(ratio) * x_t + sampler.churn_noise * math.sqrt(1 - ratio) * fresh_noise()
    return x_hat, raised


def euler(
    predict: Predict, estimate: Estimate, fresh_noise: Noise, levels: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """Euler's method over sigma: algorithm 2 without its correction."""
    for step in levels.sampler_steps():
        x_t, here = churned(x_t, step, fresh_noise, levels, sampler)
        x0_hat, d = estimate(predict(x_t, here.t), x_t, here.i, here.schedule)
        x_t = ddim_update(x0_hat, d, here.alpha_bar, step.alpha_bar_prev)
        yield step.t_prev, x_t, x0_hat


def heun(
    predict: Predict, estimate: Estimate, fresh_noise: Noise, levels: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """Heun's method (algorithm 2; without churn algorithm 1): Euler's step, repeated with the mean slope of its ends.

    Rectified flow is solved over its t (`heun_over_t`).
    """
    if levels.schedule.prediction_type == "flow":
        yield from heun_over_t(predict, estimate, fresh_noise, levels, sampler, x_t)
        return
    for step in levels.sampler_steps():
        # fresh noise, from sigma to sigma_hat
        x_t, (t, alpha_bar, schedule, i) = churned(x_t, step, fresh_noise, levels, sampler)
        # the slope at sigma_hat: d = (x - D(x; sigma_hat)) / sigma_hat
        x0_hat, d = estimate(predict(x_t, t), x_t, i, schedule)
        # Euler's step: x_prev = x + (sigma_prev - sigma_hat) d
        x_prev = ddim_update(x0_hat, d, alpha_bar, step.alpha_bar_prev)
        if step.i > 0:  # sigma_prev > 0
            # the slope at sigma_prev: d_prev = (x_prev - D(x_prev; sigma_prev)) / sigma_prev
            x0_hat, d_prev = estimate(predict(x_prev, step.t_prev), x_prev, step.i - 1)
            # the step again, with the mean of both slopes: x_prev = x + (sigma_prev - sigma_hat) (d + d_prev) / 2
            mean = (d + d_prev) / 2
            x_prev = ddim_update(x0_from_eps(schedule, mean, x_t, i), mean, alpha_bar, step.alpha_bar_prev)
        x_t = x_prev
        yield step.t_prev, x_t, x0_hat


def heun_over_t(
    predict: Predict, estimate: Estimate, fresh_noise: Noise, levels: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """Heun's method for rectified flow, over t: the slope dx/dt of x = (1 - t) x0 + t eps is the prediction itself."""
    for step in levels.sampler_steps():
        x_t, (t, alpha_bar, schedule, i) = churned(x_t, step, fresh_noise, levels, sampler)
        v = predict(x_t, t)
        x0_hat, eps_hat = estimate(v, x_t, i, schedule)
        x_prev = ddim_update(x0_hat, eps_hat, alpha_bar, step.alpha_bar_prev)  # Euler's step: x + (t_prev - t) v
        if step.i > 0:
            mean = (v + predict(x_prev, step.t_prev)) / 2
            x0_hat, eps_hat = estimate(mean, x_t, i, schedule)
            x_prev = ddim_update(x0_hat, eps_hat, alpha_bar, step.alpha_bar_prev)
        x_t = x_prev
        yield step.t_prev, x_t, x0_hat
