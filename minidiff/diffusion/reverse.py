"""Reverse diffusion: the whole walk from noise to a picture, by any of seven samplers.

Every walk is a loop over noise levels (levels.py): ask the model, guess x0 and the noise, step toward less of it
(steps.py). They differ in the guess. ask(x_t, t) is what the model predicts; guess(prediction, x_t, i) makes x0_hat
and eps_hat of that, at step i of the walk's schedule; draw() is fresh noise. Each yields (t, x_t, x0_hat) after
every step: where it has led, the state there, and the guess at the picture that led there.
"""

import math
from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any

import numpy as np

from minidiff.diffusion.forward import x0_and_eps
from minidiff.diffusion.noise_levels import NoiseLevels, noise_levels
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule
from minidiff.diffusion.steps import clipped, ddim_update, eps_given_x0, log_snr, p_sample, x0_given_eps
from minidiff.engine.tensor import no_grad
from minidiff.errors import MinidiffError

Trajectory = Iterator[tuple[float, np.ndarray, np.ndarray]]
Predict = Callable[[np.ndarray, float], np.ndarray]
Estimate = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
FreshNoise = Callable[[], np.ndarray]


def sample(
    model: Callable[..., Any],
    schedule: AnySchedule,
    shape: tuple[int, int, int, int],
    rng: Any,
    steps: int = 50,
    sampler: str | Sampler = "ddim",
    cond: Any = None,
    x_T: np.ndarray | None = None,
    begin: int = 0,
) -> Trajectory:
    """Walk from noise to pictures of shape (N, H, W, C); yields (t, x_t, x0_hat) after each of the steps.

    t is where the step has led and x_t the state there; x0_hat is the guess at the pictures that led there.
    The last t is -1, the end, and its x_t the finished pictures. The walk starts from x_T, or from noise
    drawn when `sample` is called; samplers with fresh noise then draw it in every step but the last, and
    as_diffusers in that, too. It may leave out its first `begin` steps; then x_T is the state after them.
    sampler is a Sampler, or the name of one with its other settings at their defaults.
    model(x_t, t), t (N,), is asked without gradients, and with cond=cond if there is one.

    Raises MinidiffError at once for a shape, steps, sampler or begin that makes no sense.
    """
    sampler = Sampler(sampler) if isinstance(sampler, str) else sampler
    _check_shapes(shape, x_T)
    way = noise_levels(schedule, steps, sampler).after(begin)

    def ask(x_t: np.ndarray, t: float) -> np.ndarray:
        return _predict(model, x_t, t, cond)

    def guess(prediction: np.ndarray, x_t: np.ndarray, i: int) -> tuple[np.ndarray, np.ndarray]:
        x0_hat, eps_hat = x0_and_eps(way.schedule, prediction, x_t, i)
        x0_hat = clipped(x0_hat, sampler.clip)
        if sampler.clip is not None and sampler.name != "ddim":  # which leaves the noise as the model has it
            eps_hat = eps_given_x0(x_t, x0_hat, way.schedule.alphas_cumprod[i])
        return x0_hat, eps_hat

    def draw() -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    start = np.float32(way.start) * draw() if x_T is None else x_T
    return SAMPLING_LOOPS[sampler.name](ask, guess, draw, way, sampler, start)


def ddpm(
    ask: Predict, guess: Estimate, draw: FreshNoise, way: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """DDPM algorithm 2. The last step is without noise; in diffusers, only if it is from t = 0."""
    for i, t, t_prev, *_ in way.level_steps():
        prediction = ask(x_t, t)
        x0_hat, _ = guess(prediction, x_t, i)
        z = draw() if i > 0 or (sampler.as_diffusers and t > 0) else 0.0
        x_t = p_sample(way.schedule, prediction, x_t, i, z, sampler.variance, sampler.clip)
        if i == 0 and sampler.as_diffusers and sampler.variance == "fixed_large":
            x_t = x_t + math.sqrt(way.schedule.betas[0]) * z
        yield t_prev, x_t, x0_hat


def ddim(
    ask: Predict, guess: Estimate, draw: FreshNoise, way: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """DDIM (Song et al. 2021), and over levels of sigma Euler's method."""
    eta = sampler.eta
    for i, t, t_prev, alpha_bar, alpha_bar_prev in way.level_steps():
        x0_hat, eps_hat = guess(ask(x_t, t), x_t, i)
        z = draw() if eta > 0 and (alpha_bar_prev < 1 or sampler.as_diffusers) else 0.0
        x_t = ddim_update(x0_hat, eps_hat, alpha_bar, alpha_bar_prev, eta, z)
        yield t_prev, x_t, x0_hat


def euler_ancestral(
    ask: Predict, guess: Estimate, draw: FreshNoise, way: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """Euler's method too far down and noise back up to the level (k-diffusion): DDIM's step with eta = 1."""
    return ddim(ask, guess, draw, way, Sampler("ddim", eta=1.0, as_diffusers=sampler.as_diffusers), x_t)


def heun(
    ask: Predict, guess: Estimate, draw: FreshNoise, way: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """Heun's method (Karras et al. 2022, algorithm 1): Euler's step, taken again with the mean slope of both its ends.

    eps_hat is the slope of x_t / sqrt(alpha_bar) over sigma; what rectified flow predicts is that of its x over t.
    The last step is Euler's.
    """
    for i, t, t_prev, alpha_bar, alpha_bar_prev in way.level_steps():
        prediction = ask(x_t, t)
        x0_hat, eps_hat = guess(prediction, x_t, i)
        x_prev = ddim_update(x0_hat, eps_hat, alpha_bar, alpha_bar_prev)
        if i > 0 and way.schedule.prediction_type == "flow":
            x0_hat, mean = guess((prediction + ask(x_prev, t_prev)) / 2, x_t, i)
            x_prev = ddim_update(x0_hat, mean, alpha_bar, alpha_bar_prev)
        elif i > 0:
            x0_hat, eps_there = guess(ask(x_prev, t_prev), x_prev, i - 1)
            mean = (eps_hat + eps_there) / 2
            x_prev = ddim_update(x0_given_eps(x_t, mean, alpha_bar), mean, alpha_bar, alpha_bar_prev)
        x_t = x_prev
        yield t_prev, x_t, x0_hat


def pndm(
    ask: Predict, guess: Estimate, draw: FreshNoise, way: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """PLMS (Liu et al. 2022, eq. 12): DDIM with a prediction made of the last four, as Adams and Bashforth do.

    The first step has no past: it is tried, and then taken with the mean of the predictions at both its ends; in
    diffusers as if it had begun a stride before the second timestep, which need not be the first one.
    """
    past: list[np.ndarray] = []  # the newest first
    stride = way.stride
    for i, t, t_prev, alpha_bar, alpha_bar_prev in way.level_steps():
        past = [ask(x_t, t), *past[:3]]
        prediction = np.tensordot(np.float32(ADAMS_BASHFORTH[len(past)]), np.stack(past), 1)
        if len(past) == 1 and i > 0:
            x_prev = ddim_update(*guess(past[0], x_t, i), alpha_bar, alpha_bar_prev)
            prediction = (past[0] + ask(x_prev, t_prev)) / 2
        x0_hat, eps_hat = guess(prediction, x_t, i)
        if len(past) == 1 and i > 0 and stride:
            begun = int(t_prev) + stride.length
            x0_hat, eps_hat = x0_and_eps(stride.schedule, prediction, x_t, begun)
            alpha_bar_prev = stride.alpha_bar_prev(begun, way.end)
        x_t = ddim_update(x0_hat, eps_hat, alpha_bar, alpha_bar_prev)
        yield t_prev, x_t, x0_hat


# What each of the last predictions counts, by how many there are.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def dpmpp_2m(
    ask: Predict, guess: Estimate, draw: FreshNoise, way: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2): x0_hat carried on in a straight line from the last two.

    The line is over lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), read in the middle of the step. The last keeps
    x0_hat as it is, since lambda is infinite at the clean end, and since it is steadier in walks of less than 15 steps.
    """
    steady = sampler.clean_end or len(way.ts) < 15  # diffusers' number, too
    x0_last, h_last = None, 0.0
    for i, t, t_prev, alpha_bar, alpha_bar_prev in way.level_steps():
        x0_hat, _ = guess(ask(x_t, t), x_t, i)
        h = log_snr(alpha_bar_prev) - log_snr(alpha_bar)
        carried = x0_hat
        if x0_last is not None and not (i == 0 and steady):
            carried = x0_hat + (h / h_last / 2) * (x0_hat - x0_last)
        x_t = ddim_update(carried, eps_given_x0(x_t, carried, alpha_bar), alpha_bar, alpha_bar_prev)
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


def _predict(model: Callable[..., Any], x_t: np.ndarray, t: float, cond: Any) -> np.ndarray:
    """What the model says of x_t, as an array in host memory."""
    extras = {} if cond is None else {"cond": cond}
    with no_grad():
        prediction = model(x_t, np.full(len(x_t), t), **extras)  # (N, H, W, C)
    prediction = prediction.numpy() if hasattr(prediction, "numpy") else prediction
    if prediction.shape != x_t.shape:
        raise MinidiffError(f"the model makes {prediction.shape} of x_t {x_t.shape}: both shapes must be equal")
    return prediction


def _check_shapes(shape: tuple[int, ...], x_T: np.ndarray | None) -> None:
    if len(shape) != 4 or not all(isinstance(size, Integral) and size > 0 for size in shape):
        raise MinidiffError(f"shape must be four positive integers (N, H, W, C), not {shape!r:.80}")
    if x_T is not None and x_T.shape != tuple(shape):
        raise MinidiffError(f"x_T has shape {x_T.shape}, not the {tuple(shape)} that was asked for")
