"""Reverse diffusion: from noise to a picture, one step at a time.

In every step eps_hat is what the model predicts at x_t: the noise, or x0 or v where the schedule's prediction
type says so. z is fresh noise, or 0 where a step takes none. x_t, eps_hat and z are float (N, H, W, C), t is
an int of the schedule; a long step is a step of a schedule that `respace` made short.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import numpy as np

from minidiff.diffusion.forward import at, q_posterior, x0_and_eps
from minidiff.diffusion.schedule import Schedule, respace
from minidiff.engine.tensor import no_grad
from minidiff.errors import MinidiffError

SAMPLERS = ("ddpm", "ddim")


def p_sample(
    schedule: Schedule,
    eps_hat: np.ndarray,
    x_t: np.ndarray,
    t: int,
    z: np.ndarray | float,
    variance: str = "fixed_small",
    clip_x0: bool = False,
) -> np.ndarray:
    """One step of DDPM algorithm 2, x_t to x_{t-1}: q_posterior with the guess x0_hat for x0, plus noise.

    The noise has variance beta tilde ("fixed_small") or beta ("fixed_large", both DDPM section 3.2); at t = 0
    there is none. clip_x0 keeps x0_hat in [-1, 1]. Raises MinidiffError for another variance.
    """
    if variance not in ("fixed_small", "fixed_large"):
        raise MinidiffError(f"variance {variance!r:.80} is not supported: use fixed_small or fixed_large")
    x0_hat, _ = _guess(schedule, eps_hat, x_t, t, clip_x0)
    mean, beta_tilde = q_posterior(schedule, x0_hat, x_t, t)  # eq. 7; eq. 11 is this with eps_hat put in
    if t == 0:
        return mean
    sigma2 = beta_tilde if variance == "fixed_small" else at(schedule.betas, t, x_t)
    return mean + sigma2**0.5 * z


def ddim_step(
    schedule: Schedule,
    eps_hat: np.ndarray,
    x_t: np.ndarray,
    t: int,
    t_prev: int,
    eta: float,
    z: np.ndarray | float,
    clip_x0: bool = False,
) -> np.ndarray:
    """One step of DDIM (eq. 12), x_t to x at any earlier t_prev, of which -1 is the clean end.

    eta is how much of the noise becomes fresh: 0 none, 1 as much as in DDPM. clip_x0 keeps x0_hat in [-1, 1]
    and leaves the guess of the noise as it is. Raises MinidiffError for another eta or a t_prev not below t.
    """
    _check_eta(eta)
    if not -1 <= t_prev < t:
        raise MinidiffError(f"t_prev must be from -1 to t - 1 = {t - 1}, not {t_prev}")
    x0_hat, eps_hat = _guess(schedule, eps_hat, x_t, t, clip_x0)
    abar = schedule.alphas_cumprod[t]
    abar_prev = schedule.alphas_cumprod_prev[t_prev + 1]
    sigma = float(eta) * math.sqrt((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev))  # eq. 16
    kept = math.sqrt(max(0.0, 1 - abar_prev - sigma**2))  # below 0 by rounding only
    return math.sqrt(abar_prev) * x0_hat + kept * eps_hat + sigma * z  # eq. 12


def timesteps(T: int, steps: int) -> np.ndarray:
    """The (steps,) timesteps of a walk from T - 1 down to 0, evenly spread; a single step is at T - 1.

    Raises MinidiffError unless 1 <= steps <= T.
    """
    if not isinstance(steps, Integral) or not 1 <= steps <= T:
        raise MinidiffError(f"steps must be an integer from 1 to the schedule's {T}, not {steps!r:.80}")
    first = 0 if steps > 1 else T - 1
    return np.linspace(first, T - 1, steps).round().astype(np.int64)[::-1]


def sample(
    model: Callable[..., Any],
    schedule: Schedule,
    shape: tuple[int, int, int, int],
    rng: Any,
    steps: int = 50,
    sampler: str = "ddim",
    cond: Any = None,
    eta: float = 0.0,
    clip_x0: bool = True,
    x_T: np.ndarray | None = None,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Walk from noise to pictures of shape (N, H, W, C); yields (t, x_t, x0_hat) after each of the steps.

    t is where the step has led and x_t the state there; x0_hat is the guess at the pictures that led there.
    The last t is -1, the clean end, and its x_t the finished pictures. The walk starts from x_T, or from the
    noise drawn when `sample` is called; then every step but the last draws its z ("ddim": only if eta > 0).
    model(x_t, t), t (N,) int64, is asked without gradients, and with cond=cond if there is one.

    Raises MinidiffError at once for a shape, steps, sampler or eta that makes no sense.
    """
    _check_walk(shape, sampler, eta, x_T)
    ts = timesteps(len(schedule), steps)
    short = respace(schedule, ts)  # its step i is the timestep ts[-1 - i]
    noisy = sampler == "ddpm" or eta > 0

    def walk(x_t: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for i, (t, t_prev) in zip(reversed(range(steps)), pairwise([*ts.tolist(), -1]), strict=True):
            eps_hat = _predict(model, x_t, t, cond)
            x0_hat, _ = _guess(short, eps_hat, x_t, i, clip_x0)
            z = rng.standard_normal(shape, dtype=np.float32) if noisy and i > 0 else 0.0
            if sampler == "ddpm":
                x_t = p_sample(short, eps_hat, x_t, i, z, clip_x0=clip_x0)
            else:
                x_t = ddim_step(short, eps_hat, x_t, i, i - 1, eta, z, clip_x0)
            yield t_prev, x_t, x0_hat

    return walk(rng.standard_normal(shape, dtype=np.float32) if x_T is None else x_T)


def _guess(
    schedule: Schedule, eps_hat: np.ndarray, x_t: np.ndarray, t: int, clip_x0: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The picture and the noise that x_t is made of, if the model is right."""
    x0_hat, eps_hat = x0_and_eps(schedule, eps_hat, x_t, t)
    return (x0_hat.clip(-1, 1) if clip_x0 else x0_hat), eps_hat


def _predict(model: Callable[..., Any], x_t: np.ndarray, t: int, cond: Any) -> np.ndarray:
    """What the model says of x_t, as an array in host memory."""
    extras = {} if cond is None else {"cond": cond}
    with no_grad():
        eps_hat = model(x_t, np.full(len(x_t), t, dtype=np.int64), **extras)  # (N, H, W, C)
    eps_hat = eps_hat.numpy() if hasattr(eps_hat, "numpy") else eps_hat
    if eps_hat.shape != x_t.shape:
        raise MinidiffError(f"the model makes {eps_hat.shape} of x_t {x_t.shape}: both shapes must be equal")
    return eps_hat


def _check_walk(shape: tuple[int, ...], sampler: str, eta: float, x_T: np.ndarray | None) -> None:
    if len(shape) != 4 or not all(isinstance(size, Integral) and size > 0 for size in shape):
        raise MinidiffError(f"shape must be four positive integers (N, H, W, C), not {shape!r:.80}")
    if sampler not in SAMPLERS:
        raise MinidiffError(f"sampler {sampler!r:.80} is unknown: use one of {', '.join(SAMPLERS)}")
    _check_eta(eta)
    if sampler == "ddpm" and eta != 0:
        raise MinidiffError(f"eta = {eta} is for the ddim sampler: ddpm has none")
    if x_T is not None and x_T.shape != tuple(shape):
        raise MinidiffError(f"x_T has shape {x_T.shape}, not the {tuple(shape)} that was asked for")


def _check_eta(eta: float) -> None:
    if not isinstance(eta, Real) or not 0 <= eta <= 1:  # NaN is not
        raise MinidiffError(f"eta must be from 0 to 1, not {eta!r:.80}")
