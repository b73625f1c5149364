"""UniPC: Zhao, Bai, Rao, Zhou, Lu 2023 (arXiv 2302.04867)."""

import math
from typing import NamedTuple

import numpy as np

from minidiff.diffusion.forward import eps_from_x0
from minidiff.diffusion.noise_levels import NoiseLevels
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.solvers.loop import Estimate, Noise, Predict, Trajectory
from minidiff.diffusion.steps import ddim_update, log_snr


class Point(NamedTuple):
    """A point of the trajectory: x_t after its correction, x0_hat, alpha_bar and its lambda."""

    x_t: np.ndarray
    x0_hat: np.ndarray
    alpha_bar: float
    log_snr: float


def unipc(
    predict: Predict, estimate: Estimate, fresh_noise: Noise, levels: NoiseLevels, sampler: Sampler, x_t: np.ndarray
) -> Trajectory:
    """UniPC-2 with B2(h): each step is predicted by DPM-Solver++ 2M, then corrected with x0_hat at its end.

    That x0_hat is the one which the next step needs anyway; the model is not evaluated at the corrected state. The
    corrector's x0_hat is the mean of a parabola (`mean_of_parabola`), which raises the order to 3. The states yielded
    are the predicted ones. The last step is of first order and is not corrected.
    """
    points: list[Point] = []  # the newest first
    for i, t, t_prev, alpha_bar, alpha_bar_prev in levels.sampler_steps():
        x0_hat, _ = estimate(predict(x_t, t), x_t, i)
        here = Point(x_t, x0_hat, alpha_bar, log_snr(alpha_bar))
        if points:  # UniC: the last step again
            last, corrected = points[0], mean_of_parabola(here, *points)
            eps_hat = eps_from_x0(levels.schedule, corrected, last.x_t, i + 1)
            here = here._replace(x_t=ddim_update(corrected, eps_hat, last.alpha_bar, alpha_bar))
        predicted = x0_hat  # UniP: x0_hat extrapolated to the middle of the step
        if points and i > 0:
            h, h_last = log_snr(alpha_bar_prev) - here.log_snr, here.log_snr - points[0].log_snr
            predicted = x0_hat + (h / h_last / 2) * (x0_hat - points[0].x0_hat)
        eps_hat = eps_from_x0(levels.schedule, predicted, here.x_t, i)
        x_t = ddim_update(predicted, eps_hat, alpha_bar, alpha_bar_prev)
        points = [here, *points[:1]]
        yield t_prev, x_t, x0_hat


def mean_of_parabola(end: Point, start: Point, before: Point | None = None) -> np.ndarray:
    """The x0_hat of a step from `start` to `end`: the mean over the step of the parabola through all three.

    With u = (lambda - lambda_start) / h, which goes from 0 to 1, the exact solution weights x0_hat by e^(h u). The
    weighted means of u and u^2 are b1 and b2. Without `before` it is the mean of both ends.
    """
    if before is None:
        return (start.x0_hat + end.x0_hat) / 2
    h = end.log_snr - start.log_snr
    u = (before.log_snr - start.log_snr) / h  # below 0
    b1 = -1 / math.expm1(-h) - 1 / h
    b2 = -1 / math.expm1(-h) - 2 * b1 / h
    weight_before = (b1 - b2) / (1 - u)  # the solution of weight_before (1, u) + weight_end (1, 1) = (b1, b2)
    weight_end = b1 - weight_before
    return start.x0_hat + weight_before / u * (before.x0_hat - start.x0_hat) + weight_end * (end.x0_hat - start.x0_hat)
