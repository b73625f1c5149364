"""Exercises of chapter 4: reverse diffusion."""

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from minidiff.data import open_dataset
from minidiff.data.imaging import strip, to_float, to_uint8
from minidiff.diffusion.exact import GaussianMixture, exact_model
from minidiff.diffusion.schedule import cosine_schedule, linear_schedule
from minidiff.learn.exercise import Answer, Exercise

if TYPE_CHECKING:
    from PIL import Image

Array = np.ndarray


def p_sample(eps_hat: np.ndarray, x_t: np.ndarray, t: int, z: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """One step of DDPM, from x_t to x_{t-1}: x_{t-1} = mu_t + sqrt(beta tilde_t) z (DDPM algorithm 2).

    eps_hat  the noise that the model predicts at x_t, (N, H, W, C)
    x_t      noisy images, (N, H, W, C)
    t        their timestep, an int counted from 0
    z        standard normal noise, (N, H, W, C)
    betas    beta of every timestep, (T,)

    mu_t is DDPM's eq. 11, beta tilde_t the variance of eq. 7, with alpha = 1 - beta and alpha_bar_t the product of the
    alphas up to t. The step from t = 0 leads to the clean image, where alpha_bar is 1, and adds no noise.
    Returns x_{t-1}, (N, H, W, C).
    """
    alphas_cumprod = np.cumprod(1 - betas)  # (T,)
    alpha_bar, alpha_bar_prev = alphas_cumprod[t], alphas_cumprod[t - 1] if t > 0 else 1.0
    mean = (x_t - betas[t] / np.sqrt(1 - alpha_bar) * eps_hat) / np.sqrt(1 - betas[t])
    beta_tilde = (1 - alpha_bar_prev) / (1 - alpha_bar) * betas[t]  # 0 at t = 0
    return mean + np.sqrt(beta_tilde) * z


def _beta_tilde(t: int, betas: np.ndarray) -> Any:
    alphas_cumprod = np.cumprod(1 - betas)
    return (1 - alphas_cumprod[t - 1]) / (1 - alphas_cumprod[t]) * betas[t] if t > 0 else 0.0


def _variance_for_deviation(eps_hat: Array, x_t: Array, t: int, z: Array, betas: Array) -> Array:
    """z is multiplied by beta tilde, which is the variance: its square root is the standard deviation."""
    return p_sample(eps_hat, x_t, t, 0 * z, betas) + _beta_tilde(t, betas) * z


def _beta_for_beta_tilde(eps_hat: Array, x_t: Array, t: int, z: Array, betas: Array) -> Array:
    """The noise has variance beta_t, DDPM's larger choice: here it is beta tilde_t, which is 0 at t = 0."""
    return p_sample(eps_hat, x_t, t, 0 * z, betas) + np.sqrt(betas[t]) * z


def _without_root(eps_hat: Array, x_t: Array, t: int, z: Array, betas: Array) -> Array:
    """In the mean eps_hat is multiplied by beta / (1 - alpha_bar): the denominator is sqrt(1 - alpha_bar)."""
    alpha_bar = np.cumprod(1 - betas)[t]
    mean = (x_t - betas[t] / (1 - alpha_bar) * eps_hat) / np.sqrt(1 - betas[t])
    return mean + np.sqrt(_beta_tilde(t, betas)) * z


def _to_x0_at_once(eps_hat: Array, x_t: Array, t: int, z: Array, betas: Array) -> Array:
    """The mean is divided by sqrt(alpha_bar_t), the scale of all steps together; one step has sqrt(alpha_t)."""
    alpha_bar = np.cumprod(1 - betas)[t]
    mean = (x_t - betas[t] / np.sqrt(1 - alpha_bar) * eps_hat) / np.sqrt(alpha_bar)
    return mean + np.sqrt(_beta_tilde(t, betas)) * z


def _last_for_previous(eps_hat: Array, x_t: Array, t: int, z: Array, betas: Array) -> Array:
    """At t = 0 the index t - 1 is -1, which in NumPy is the last entry: alpha_bar of before t = 0 is 1, no noise."""
    alphas_cumprod = np.cumprod(1 - betas)
    variance = (1 - alphas_cumprod[t - 1]) / (1 - alphas_cumprod[t]) * betas[t]
    return p_sample(eps_hat, x_t, t, 0 * z, betas) + np.sqrt(variance) * z


def ddim_step(
    eps_hat: np.ndarray,
    x_t: np.ndarray,
    t: int,
    t_prev: int,
    eta: float,
    z: np.ndarray,
    alphas_cumprod: np.ndarray,
) -> np.ndarray:
    """One step of DDIM from timestep t to the earlier t_prev (DDIM eq. 12).

    x_prev = sqrt(alpha_bar_prev) x0_hat + sqrt(1 - alpha_bar_prev - sigma^2) eps_hat + sigma z

    eps_hat         the noise that the model predicts at x_t, (N, H, W, C)
    x_t             noisy images, (N, H, W, C)
    t               their timestep, an int counted from 0
    t_prev          any earlier timestep; -1 is the clean image, where alpha_bar is 1
    eta             from 0 (no fresh noise) to 1 (as much as DDPM's): scales sigma (eq. 16)
    z               standard normal noise, (N, H, W, C)
    alphas_cumprod  alpha_bar of every timestep, (T,)

    Returns x_prev, (N, H, W, C).
    """
    alpha_bar, alpha_bar_prev = alphas_cumprod[t], alphas_cumprod[t_prev] if t_prev >= 0 else 1.0
    x0_hat = (x_t - np.sqrt(1 - alpha_bar) * eps_hat) / np.sqrt(alpha_bar)
    sigma = eta * np.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev))
    return np.sqrt(alpha_bar_prev) * x0_hat + np.sqrt(1 - alpha_bar_prev - sigma**2) * eps_hat + sigma * z


def _noise_not_reduced(
    eps_hat: Array, x_t: Array, t: int, t_prev: int, eta: float, z: Array, alphas_cumprod: Array
) -> Array:
    """With eta above 0 there is too much noise: eps_hat has the coefficient sqrt(1 - alpha_bar_prev - sigma^2)."""
    alpha_bar, alpha_bar_prev = alphas_cumprod[t], alphas_cumprod[t_prev] if t_prev >= 0 else 1.0
    sigma = eta * np.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev))
    return ddim_step(eps_hat, x_t, t, t_prev, 0.0, z, alphas_cumprod) + sigma * z


def _last_for_clean(
    eps_hat: Array, x_t: Array, t: int, t_prev: int, eta: float, z: Array, alphas_cumprod: Array
) -> Array:
    """The step to t_prev = -1 is wrong: alphas_cumprod[-1] is the last entry, but the clean image has alpha_bar = 1."""
    return ddim_step(eps_hat, x_t, t, t_prev % len(alphas_cumprod), eta, z, alphas_cumprod)


def _next_timestep(
    eps_hat: Array, x_t: Array, t: int, t_prev: int, eta: float, z: Array, alphas_cumprod: Array
) -> Array:
    """The step ends at t - 1, as DDPM's does: DDIM's ends at t_prev, which may be many timesteps earlier."""
    return ddim_step(eps_hat, x_t, t, t - 1, eta, z, alphas_cumprod)


def _x_t_for_x0_hat(
    eps_hat: Array, x_t: Array, t: int, t_prev: int, eta: float, z: Array, alphas_cumprod: Array
) -> Array:
    """x_t stands where x0_hat belongs: first solve x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps for x0."""
    alpha_bar_prev = alphas_cumprod[t_prev] if t_prev >= 0 else 1.0
    at_x0_hat = ddim_step(eps_hat, x_t, t, -1, 0.0, z, alphas_cumprod)
    return ddim_step(eps_hat, x_t, t, t_prev, eta, z, alphas_cumprod) + np.sqrt(alpha_bar_prev) * (x_t - at_x0_hat)


def _x0_hat_without_root(
    eps_hat: Array, x_t: Array, t: int, t_prev: int, eta: float, z: Array, alphas_cumprod: Array
) -> Array:
    """x0_hat is divided by alpha_bar, without the root: the coefficient of x0 in x_t is sqrt(alpha_bar)."""
    root = np.sqrt(alphas_cumprod[t])
    alpha_bar_prev = alphas_cumprod[t_prev] if t_prev >= 0 else 1.0
    x0_hat = ddim_step(eps_hat, x_t, t, -1, 0.0, z, alphas_cumprod)
    excess = np.sqrt(alpha_bar_prev) * (x0_hat / root - x0_hat)
    return ddim_step(eps_hat, x_t, t, t_prev, eta, z, alphas_cumprod) + excess


def probability_flow(x_t: np.ndarray, eps_hat: np.ndarray, alpha_bar: float, beta: float) -> np.ndarray:
    """dx_t/dt of the probability-flow ODE (Song et al. 2021, eq. 13), in the time t of a schedule.

    x_t        noisy images, (N, H, W, C)
    eps_hat    the noise that the model predicts at x_t, (N, H, W, C)
    alpha_bar  the noise level at t, a number below 1
    beta       -d log(alpha_bar) / dt at t, a number

    The drift of forward diffusion is -beta x_t / 2; the score is -eps_hat / sqrt(1 - alpha_bar).
    Returns dx_t/dt, (N, H, W, C).
    """
    score = -eps_hat / np.sqrt(1 - alpha_bar)
    return -0.5 * beta * (x_t + score)


def _drift_of_reverse_sde(x_t: Array, eps_hat: Array, alpha_bar: float, beta: float) -> Array:
    """The score has the coefficient -beta: that is the reverse SDE, which adds noise too. The ODE has -beta / 2."""
    return -0.5 * beta * x_t + beta * eps_hat / np.sqrt(1 - alpha_bar)


def _wrong_sign(x_t: Array, eps_hat: Array, alpha_bar: float, beta: float) -> Array:
    """The sign of the score is wrong: the score is -eps_hat / sqrt(1 - alpha_bar), it points away from the noise."""
    return probability_flow(x_t, -eps_hat, alpha_bar, beta)


def _eps_for_score(x_t: Array, eps_hat: Array, alpha_bar: float, beta: float) -> Array:
    """eps_hat is not divided by sqrt(1 - alpha_bar): the score is -eps_hat / sqrt(1 - alpha_bar)."""
    return -0.5 * beta * (x_t - eps_hat)


def _without_drift(x_t: Array, eps_hat: Array, alpha_bar: float, beta: float) -> Array:
    """The drift of forward diffusion, -beta x_t / 2, is missing: without it x_t keeps the scale of the images."""
    return probability_flow(0 * x_t, eps_hat, alpha_bar, beta)


def order(evaluations: np.ndarray, errors: np.ndarray) -> float:
    """The order of a solver: k of the law error = C evaluations^(-k), fitted by least squares.

    evaluations  model evaluations of each run, (n,)
    errors       the error of each run, (n,)

    On logarithmic axes the law is a straight line. Fit that line to all points, log(error) as a function of
    log(evaluations), and return minus its slope, a number.
    """
    slope, _ = np.polyfit(np.log(evaluations), np.log(errors), 1)
    return -float(slope)


def _slope_itself(evaluations: np.ndarray, errors: np.ndarray) -> float:
    """The sign is wrong: the slope is negative, since errors fall, and the order is minus the slope."""
    return -order(evaluations, errors)


def _swapped_axes(evaluations: np.ndarray, errors: np.ndarray) -> float:
    """The axes are swapped: log(error) is a function of log(evaluations), not the other way round."""
    return order(errors, evaluations)


def _half_logarithmic(evaluations: np.ndarray, errors: np.ndarray) -> float:
    """Only the errors' logarithm is taken: a power law is straight if both axes are logarithmic."""
    return -float(np.polyfit(evaluations, np.log(errors), 1)[0])


def _first_and_last(evaluations: np.ndarray, errors: np.ndarray) -> float:
    """The slope is that between the first and the last point: fit the line to all points, by least squares."""
    return order(evaluations[[0, -1]], errors[[0, -1]])


def _ddpm_steps(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    eps_hat, x_t, z = rng.standard_normal((3, 2, 6, 8, 3))
    tables = (linear_schedule().betas, cosine_schedule().betas)
    return [(eps_hat, x_t, t, z, betas) for betas in tables for t in (0, 1, 300, 900)]


def _ddim_steps(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    eps_hat, x_t, z = rng.standard_normal((3, 2, 6, 8, 3))
    steps = [(700, 500, 0.0), (700, 500, 1.0), (300, 280, 0.4), (900, 899, 1.0), (20, 0, 1.0), (999, -1, 0.0)]
    return [(eps_hat, x_t, t, s, eta, z, linear_schedule().alphas_cumprod) for t, s, eta in steps]


def _slopes(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    x_t, eps_hat = rng.standard_normal((2, 2, 6, 8, 3))
    return [(x_t, eps_hat, alpha_bar, beta) for alpha_bar, beta in ((0.9, 0.002), (0.4, 0.01), (0.01, 0.02))]


def _errors(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    evaluations = np.array([8.0, 16, 32, 64, 128])
    return [(evaluations, rng.uniform(0.5, 2, 5) * evaluations**-k) for k in (1.0, 2.0, 3.0)]


def _reverse_strip(step: Callable[..., np.ndarray], steps: int) -> "Image.Image":
    """Ten states of a trajectory among sixteen cats and dogs; step(eps_hat, x_t, t, t_prev, z) is one step of it."""
    schedule, rng = linear_schedule(), np.random.default_rng(0)
    images = to_float(open_dataset("cats_dogs").take(np.arange(16)))  # (16, 32, 32, 3)
    model = exact_model(GaussianMixture(images), schedule)
    x_t = rng.standard_normal((1, 32, 32, 3))
    states = {999: x_t}
    for t, t_prev in pairwise(np.linspace(999, -1, steps + 1).round().astype(int).tolist()):
        states[t_prev] = x_t = step(model(x_t, t), x_t, t, t_prev, rng.standard_normal(x_t.shape))
    shown = [999, 499, 399, 299, 249, 199, 149, 99, 49, -1]
    return strip(to_uint8(np.concatenate([states[t] for t in shown])), [*(f"t = {t}" for t in shown[:-1]), "x0"])


def _ddpm_strip(answer: Answer) -> "Image.Image":
    betas = linear_schedule().betas
    return _reverse_strip(lambda eps_hat, x_t, t, _, z: answer(eps_hat, x_t, t, z, betas), 1000)


def _ddim_strip(answer: Answer) -> "Image.Image":
    table = linear_schedule().alphas_cumprod
    return _reverse_strip(lambda eps_hat, x_t, t, t_prev, z: answer(eps_hat, x_t, t, t_prev, 0.0, z, table), 100)


EXERCISES = (
    Exercise(
        "DDPM step",
        4,
        p_sample,
        _ddpm_steps,
        (_variance_for_deviation, _beta_for_beta_tilde, _without_root, _to_x0_at_once, _last_for_previous),
        _ddpm_strip,
    ),
    Exercise(
        "DDIM step",
        4,
        ddim_step,
        _ddim_steps,
        (_noise_not_reduced, _last_for_clean, _next_timestep, _x_t_for_x0_hat, _x0_hat_without_root),
        _ddim_strip,
    ),
    Exercise(
        "Probability-flow ODE",
        4,
        probability_flow,
        _slopes,
        (_drift_of_reverse_sde, _wrong_sign, _eps_for_score, _without_drift),
    ),
    Exercise(
        "Order of a solver", 4, order, _errors, (_slope_itself, _swapped_axes, _half_logarithmic, _first_and_last)
    ),
)
