"""The consistency function f(x_t, t): the image at the end of x_t's trajectory (Song et al. 2023, arXiv 2303.01469).

The probability-flow ODE carries x_t to an image, and all points of one trajectory to the same image. f is that map, so
f(x_t, t) = f(x_r, r) for two points of a trajectory, and f(x, t) = x at its end: the boundary condition, without which
a constant would be consistent. A network that predicts eps, x0, v or another target gives an estimate x0_hat that is
linear in its prediction F, and

    f(x_t, t) = c_skip(t) x_t + c_out(t) x0_hat(x_t, F)

satisfies the condition whatever F is. In continuous time c_skip = 0 and c_out = 1 do, for x0_hat itself tends to x_t.
Schedules over whole timesteps end at t = 0, whose x_t has a little noise; they take the c_skip and c_out of latent
consistency models (Luo et al. 2023, arXiv 2310.04378), as diffusers' LCMScheduler does.

If F is eps or v, its coefficient in x0_hat tends to 0 with the noise, which binds f to x_t over many timesteps. F of x0
has the coefficient 1, and only c_skip binds it: tuning such a network drifts, and `minidiff distill` refuses it.
"""

from typing import Any

import numpy as np

from minidiff.diffusion.continuous import SIGMA_DATA
from minidiff.diffusion.forward import Time, x0_and_eps
from minidiff.diffusion.schedule import AnySchedule, Schedule

TIMESTEP_SCALING = 10.0  # of latent consistency models: c_skip falls from 1 at t = 0 to 0.0025 at t = 1


def boundary(schedule: AnySchedule, t: Time) -> tuple[np.ndarray, np.ndarray]:
    """c_skip and c_out in t's shape, float64: 1 and 0 at t = 0 of whole timesteps; 0 and 1 in continuous time.

    c_skip = 0.25 / ((10 t)^2 + 0.25), c_out = 10 t / sqrt((10 t)^2 + 0.25).
    """
    t = np.asarray(t, np.float64)
    if not isinstance(schedule, Schedule):
        return np.zeros_like(t), np.ones_like(t)
    scaled = TIMESTEP_SCALING * t
    return SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2), scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5


def coefficients(schedule: AnySchedule, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A and B of f(x_t, t) = A x_t + B F, F the network's prediction: (N, 1, 1, 1) float64 for t (N,).

    Such as A = sqrt(alpha_bar), B = -sqrt(1 - alpha_bar) if F is v, but for c_skip and c_out. At the boundary A is 1
    and B 0. Raises MinidiffError for a t out of the schedule's range, and for EDM's t = 0.
    """
    one, zero = np.ones((len(t), 1, 1, 1)), np.zeros((len(t), 1, 1, 1))
    of_x_t, _ = x0_and_eps(schedule, zero, one, t)  # x0_hat is linear in prediction and x_t
    of_prediction, _ = x0_and_eps(schedule, one, zero, t)
    c_skip, c_out = (c.reshape(-1, 1, 1, 1) for c in boundary(schedule, t))
    return c_skip + c_out * of_x_t, c_out * of_prediction


def consistency(schedule: AnySchedule, prediction: Any, x_t: Any, t: np.ndarray) -> Any:
    """f(x_t, t) (N, H, W, C) of the network's prediction at x_t, both arrays of one module; t (N,)."""
    A, B = (np.asarray(c, x_t.dtype) for c in coefficients(schedule, t))
    return A * x_t + B * prediction
