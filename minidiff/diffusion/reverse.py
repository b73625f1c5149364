"""Reverse diffusion: sampling, from noise to images, by one of the loops in solvers/."""

from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np

from minidiff.diffusion.forward import eps_from_x0, x0_and_eps
from minidiff.diffusion.model import Model, evaluate, evaluate_with_variance, with_variance
from minidiff.diffusion.noise_levels import noise_levels
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule, Schedule
from minidiff.diffusion.solvers.consistency import consistency
from minidiff.diffusion.solvers.ddim import ddim, euler_ancestral
from minidiff.diffusion.solvers.ddpm import ddpm
from minidiff.diffusion.solvers.dpm_solver import dpmpp_2m, dpmpp_sde
from minidiff.diffusion.solvers.edm import euler, heun
from minidiff.diffusion.solvers.euler_maruyama import euler_maruyama
from minidiff.diffusion.solvers.loop import Trajectory
from minidiff.diffusion.solvers.pndm import pndm
from minidiff.diffusion.solvers.unipc import unipc
from minidiff.diffusion.steps import clipped
from minidiff.engine.rng import Rng
from minidiff.errors import MinidiffError

Tick = Callable[[], object]
Watch = Callable[[np.ndarray], object]


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

    def estimate(
        prediction: np.ndarray, x_t: np.ndarray, i: int, schedule: Schedule = levels.schedule
    ) -> tuple[np.ndarray, np.ndarray]:
        x0_hat, eps_hat = x0_and_eps(schedule, prediction, x_t, i)
        x0_hat = clipped(x0_hat, sampler.clip)
        if sampler.clip is not None and sampler.name != "ddim":  # which keeps the model's eps_hat
            eps_hat = eps_from_x0(schedule, x0_hat, x_t, i)
        return x0_hat, eps_hat

    def fresh_noise() -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    start = np.float32(levels.start) * fresh_noise() if x_T is None else x_T
    return SAMPLING_LOOPS[sampler.name](predict, estimate, fresh_noise, levels, sampler, start)


def skip(schedule: AnySchedule, shape: tuple[int, int, int, int], rng: Rng, steps: int, sampler: Sampler) -> None:
    """Draw from rng what `sample` draws for that shape, without evaluating a model: what follows has its own noise."""
    for _ in sample(no_model, schedule, shape, rng, steps, sampler):
        pass


def no_model(x_t: np.ndarray, t: np.ndarray, cond: Any = None) -> np.ndarray:
    """In the place of a model, where only noise is to be drawn: predicts 0, a variance too."""
    return np.zeros(with_variance(x_t.shape), np.float32)


def last_x_t(trajectory: Trajectory, tick: Tick = lambda: None, watch: Watch = lambda x0_hat: None) -> np.ndarray:
    """The last x_t (N, H, W, C) of a trajectory: its sample. tick() and watch(x0_hat) are called after every step."""
    x_t = None
    for _, x_t, x0_hat in trajectory:  # noqa: B007  only the last one is returned
        tick()
        watch(x0_hat)
    assert x_t is not None  # a trajectory has at least one step
    return x_t


SAMPLING_LOOPS = {
    "ddpm": ddpm,
    "ddim": ddim,
    "pndm": pndm,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m,
    "dpmpp_sde": dpmpp_sde,
    "unipc": unipc,
    "euler_maruyama": euler_maruyama,
    "consistency": consistency,
}


def _check_shapes(shape: tuple[int, ...], x_T: np.ndarray | None) -> None:
    if len(shape) != 4 or not all(isinstance(size, Integral) and size > 0 for size in shape):
        raise MinidiffError(f"shape must be four positive integers (N, H, W, C), not {shape!r:.80}")
    if x_T is not None and x_T.shape != tuple(shape):
        raise MinidiffError(f"x_T has shape {x_T.shape}, not the requested {tuple(shape)}")
