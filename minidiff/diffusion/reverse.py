"""Reverse diffusion: the sampling loops from noise to images, of seven samplers.

Each is a loop over noise levels (noise_levels.py): predict, estimate x0 and eps, step to the next level (steps.py).
They differ in the estimates. predict(x_t, t) is the model's prediction; estimate(prediction, x_t, i) converts it to
x0_hat and eps_hat at timestep i of levels.schedule; fresh_noise() is standard normal. Each yields (t, x_t, x0_hat)
after every step: the timestep reached, the state there, and the model's latest estimate of x0 in that step.
"""

from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any

import numpy as np

from minidiff.diffusion.forward import eps_from_x0, x0_and_eps, x0_from_eps
from minidiff.diffusion.model import Model, evaluate, evaluate_with_variance
from minidiff.diffusion.noise_levels import NoiseLevels, noise_levels
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule
from minidiff.diffusion.steps import clipped, ddim_update, diffusers_last_std, log_snr, p_sample
from minidiff.engine.rng import Rng
from minidiff.errors import MinidiffError

Trajectory = Iterator[tuple[float, np.ndarray, np.ndarray]]
Predict = Callable[[np.ndarray, float], np.ndarray]
Estimate = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
Noise = Callable[[], np.ndarray]
Tick = Callable[[], object]


def sample(
    model: Model,
    schedule: AnySchedule,
    shape: tuple[int, int, int, int],
    rng: Rng,
    steps: int = 50,
    sampler: str | Sampler = "ddim",
    cond: Any = None,
    x_T: np.ndarray | None = None,
    begin: int = 0,
) -> Trajectory:
    """The sampling loop from noise to images (N, H, W, C); yields (t, x_t, x0_hat) after each of the steps.

    t is the timestep that the step has reached and x_t the state there; x0_hat is the model's latest estimate of x0 in
    the step: heun's at its end, dpmpp_2m's before the extrapolation. The last t is -1 and its x_t the sample. Sampling
    starts from x_T, or from noise drawn when `sample` is called; stochastic samplers draw fresh noise in every step.
    The first `begin` steps are skipped; then x_T is the state at the noise level after them.
    sampler is a Sampler, or the name of one with its other settings at their defaults.
    model(x_t, t), t (N,), is evaluated without gradients, with cond=cond unless that is None.

    Raises MinidiffError, before the first step, for a shape, steps, sampler or begin that is not valid.
    """
    sampler = Sampler(sampler) if isinstance(sampler, str) else sampler
    _check_shapes(shape, x_T)
    levels = noise_levels(schedule, steps, sampler).from_step(begin)
    evaluated = evaluate_with_variance if sampler.variance == "learned_range" else evaluate

    def predict(x_t: np.ndarray, t: float) -> np.ndarray:
        return evaluated(model, x_t, np.full(len(x_t), t), cond)

    def estimate(prediction: np.ndarray, x_t: np.ndarray, i: int) -> tuple[np.ndarray, np.ndarray]:
        x0_hat, eps_hat = x0_and_eps(levels.schedule, prediction, x_t, i)
        x0_hat = clipped(x0_hat, sampler.clip)
        if sampler.clip is not None and sampler.name != "ddim":  # which keeps the model's eps_hat
            eps_hat = eps_from_x0(levels.schedule, x0_hat, x_t, i)
        return x0_hat, eps_hat

    def fresh_noise() -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    start = np.float32(levels.start) * fresh_noise() if x_T is None else x_T
    return SAMPLING_LOOPS[sampler.name](predict, estimate, fresh_noise, levels, sampler, start)


def last_x_t(trajectory: Trajectory, tick: Tick = lambda: None) -> np.ndarray:
    """The last x_t (N, H, W, C) of a trajectory: its sample. tick() is called after every step."""
    x_t = None
    for _, x_t, _ in trajectory:  # noqa: B007  only the last one is returned
        tick()
    assert x_t is not None  # a trajectory has at least one step
    return x_t


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


def ddim(
    predict: Predict, estimate: Estimate, fresh_noise: Noise, levels: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """DDIM (Song et al. 2021, eq. 12). With eta = 0 and without clipping it is Euler's method in sigma (eq. 13), so
    `euler` is this loop, too, at other noise levels.
    """
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


SAMPLING_LOOPS = {
    "ddpm": ddpm,
    "ddim": ddim,
    "pndm": pndm,
    "euler": ddim,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
}


def _check_shapes(shape: tuple[int, ...], x_T: np.ndarray | None) -> None:
    if len(shape) != 4 or not all(isinstance(size, Integral) and size > 0 for size in shape):
        raise MinidiffError(f"shape must be four positive integers (N, H, W, C), not {shape!r:.80}")
    if x_T is not None and x_T.shape != tuple(shape):
        raise MinidiffError(f"x_T has shape {x_T.shape}, not the requested {tuple(shape)}")
