"""Exercises of chapter 13: parameterisations and evaluation."""

from typing import Any

import numpy as np

from minidiff.diffusion.schedule import cosine_schedule, linear_schedule
from minidiff.learn.exercise import Exercise

Array = np.ndarray


def x0_and_eps(
    v: np.ndarray, x_t: np.ndarray, t: np.ndarray, alphas_cumprod: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """x0_hat and eps_hat of a v-prediction (Salimans & Ho 2022, appendix D).

    With the angle phi, cos(phi) = sqrt(alpha_bar) and sin(phi) = sqrt(1 - alpha_bar):

        x_t = cos(phi) x0 + sin(phi) eps
        v   = cos(phi) eps - sin(phi) x0

    v               the prediction at x_t, (N, H, W, C)
    x_t             noisy images, (N, H, W, C)
    t               the timestep of each image, int (N,), counted from 0
    alphas_cumprod  alpha_bar of every timestep, (T,)

    Returns x0_hat and eps_hat, (N, H, W, C) each: both equations solved for x0 and eps.
    """
    alpha_bar = alphas_cumprod[t].reshape(-1, 1, 1, 1)  # (N, 1, 1, 1)
    cos, sin = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    return cos * x_t - sin * v, sin * x_t + cos * v


def _other_direction(v: Array, x_t: Array, t: Array, alphas_cumprod: Array) -> tuple[Array, Array]:
    """The rotation has the wrong direction: x0 = cos x_t - sin v and eps = sin x_t + cos v."""
    return x0_and_eps(-v, x_t, t, alphas_cumprod)


def _swapped(v: Array, x_t: Array, t: Array, alphas_cumprod: Array) -> tuple[Array, Array]:
    """The order is eps_hat, x0_hat: return x0_hat first."""
    x0, eps = x0_and_eps(v, x_t, t, alphas_cumprod)
    return eps, x0


def _without_roots(v: Array, x_t: Array, t: Array, alphas_cumprod: Array) -> tuple[Array, Array]:
    """The square roots are missing: cos(phi) is sqrt(alpha_bar), sin(phi) is sqrt(1 - alpha_bar)."""
    alpha_bar = alphas_cumprod[t].reshape(-1, 1, 1, 1)
    return alpha_bar * x_t - (1 - alpha_bar) * v, (1 - alpha_bar) * x_t + alpha_bar * v


def _v_as_eps(v: Array, x_t: Array, t: Array, alphas_cumprod: Array) -> tuple[Array, Array]:
    """v is taken for eps: at high noise levels v is nearly -x0, and only at low ones nearly eps."""
    alpha_bar = alphas_cumprod[t].reshape(-1, 1, 1, 1)
    return (x_t - np.sqrt(1 - alpha_bar) * v) / np.sqrt(alpha_bar), v


def preconditioning(sigma: np.ndarray, sigma_data: float) -> tuple[np.ndarray, np.ndarray]:
    """c_skip and c_out of EDM (Karras et al. 2022, table 1): the denoiser is D = c_skip x + c_out F.

    sigma       standard deviations of the noise in x = x0 + sigma eps, (N,)
    sigma_data  the standard deviation of x0, a number

    F's target, (x0 - c_skip x) / c_out, has variance 1 if that of x0 is sigma_data^2; of all such pairs it is the one
    with the smallest c_out. Returns c_skip and c_out, (N,) each.
    """
    variance = sigma**2 + sigma_data**2  # of x
    return sigma_data**2 / variance, sigma * sigma_data / np.sqrt(variance)


def _noise_fraction(sigma: Array, sigma_data: float) -> tuple[Array, Array]:
    """c_skip is the fraction of the noise in the variance of x: it is that of the data, so 1 without noise."""
    c_skip, c_out = preconditioning(sigma, sigma_data)
    return 1 - c_skip, c_out


def _skip_root(sigma: Array, sigma_data: float) -> tuple[Array, Array]:
    """c_skip has a root too many: minimise (1 - c_skip)^2 sigma_data^2 + c_skip^2 sigma^2 over c_skip."""
    c_skip, c_out = preconditioning(sigma, sigma_data)
    return np.sqrt(c_skip), c_out


def _out_squared(sigma: Array, sigma_data: float) -> tuple[Array, Array]:
    """c_out is the variance of x0 - c_skip x: take its root, the standard deviation."""
    c_skip, c_out = preconditioning(sigma, sigma_data)
    return c_skip, c_out**2


def _data_part_only(sigma: Array, sigma_data: float) -> tuple[Array, Array]:
    """c_out leaves the noise out: the variance of x0 - c_skip x is (1 - c_skip)^2 sigma_data^2 + c_skip^2 sigma^2."""
    c_skip, _ = preconditioning(sigma, sigma_data)
    return c_skip, (1 - c_skip) * sigma_data


def marginal_velocity(x: np.ndarray, t: float, points: np.ndarray) -> np.ndarray:
    """The velocity that flow matching learns, E[eps - x0 | x], for data that are a finite set of points.

    x       positions at time t, (N, D): x = (1 - t) x0 + t eps with eps standard normal
    t       from 0 (data) to 1 (noise), a number between both
    points  the data, (K, D), each as probable as the others

    The probability of each point given x is a softmax over k of -|x - (1 - t) points[k]|^2 / (2 t^2), and given x0
    and x the noise is eps = (x - (1 - t) x0) / t. Returns velocities, (N, D).
    """
    squares = np.sum((x[:, None] - (1 - t) * points) ** 2, axis=2)  # (N, K)
    weights = np.exp(-(squares - squares.min(1, keepdims=True)) / (2 * t**2))
    x0_hat = weights / weights.sum(1, keepdims=True) @ points  # (N, D)
    return (x - x0_hat) / t  # eps - x0 = (x - x0) / t


def _towards_data(x: Array, t: float, points: Array) -> Array:
    """The sign is wrong: t grows towards the noise here, so the velocity is eps - x0 and not x0 - eps."""
    return -marginal_velocity(x, t, points)


def _equal_weights(x: Array, t: float, points: Array) -> Array:
    """All points have the same weight: a point that is more probable, given x, must weigh more."""
    return (x - points.mean(0)) / t


def _nearest_point(x: Array, t: float, points: Array) -> Array:
    """Only the most probable point is used: the velocity is the mean over all points, weighted by probability."""
    squares = np.sum((x[:, None] - (1 - t) * points) ** 2, axis=2)
    return (x - points[squares.argmin(1)]) / t


def _reversed_time(x: Array, t: float, points: Array) -> Array:
    """Time runs the other way, as in the paper: here t = 0 is the data, x = (1 - t) x0 + t eps."""
    return marginal_velocity(x, 1 - t, points)


def _without_variance(x: Array, t: float, points: Array) -> Array:
    """The squared distances are not divided by 2 t^2: the noise in x has the standard deviation t."""
    squares = np.sum((x[:, None] - (1 - t) * points) ** 2, axis=2)
    weights = np.exp(-(squares - squares.min(1, keepdims=True)))
    return (x - weights / weights.sum(1, keepdims=True) @ points) / t


def frechet_distance(f: np.ndarray, g: np.ndarray) -> float:
    """The squared Fréchet distance of the Gaussians with the means and covariances of two sets of features.

    f, g  features, a row an image, (n, D) and (m, D)

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), where the covariances are over n - 1 and m - 1. The trace of
    (C1 C2)^(1/2) is the sum of the roots of the eigenvalues of C1 C2, which are real and not negative; rounding may
    give them a tiny imaginary part. Returns a number.
    """
    c1, c2 = np.cov(f, rowvar=False), np.cov(g, rowvar=False)  # (D, D)
    roots = np.sqrt(np.linalg.eigvals(c1 @ c2).real.clip(0))  # (D,)
    return float(np.sum((f.mean(0) - g.mean(0)) ** 2) + np.trace(c1) + np.trace(c2) - 2 * roots.sum())


def _means_alone(f: Array, g: Array) -> float:
    """Only the means are compared: features may have the same mean and different covariances."""
    return float(np.sum((f.mean(0) - g.mean(0)) ** 2))


def _without_cross_term(f: Array, g: Array) -> float:
    """The term -2 tr((C1 C2)^(1/2)) is missing: without it the distance of a set from itself is not 0."""
    return float(_means_alone(f, g) + np.trace(np.cov(f, rowvar=False)) + np.trace(np.cov(g, rowvar=False)))


def _variances_alone(f: Array, g: Array) -> float:
    """The root of C1 C2 is taken of its entries, or of the variances alone: it is the root of a matrix."""
    return float(_means_alone(f, g) + np.sum((f.std(0, ddof=1) - g.std(0, ddof=1)) ** 2))


def _over_n(f: Array, g: Array) -> float:
    """The covariances are over n: divide the sum of the products by n - 1, as np.cov does."""
    n, m = len(f), len(g)
    return frechet_distance(
        f.mean(0) + np.sqrt((n - 1) / n) * (f - f.mean(0)), g.mean(0) + np.sqrt((m - 1) / m) * (g - g.mean(0))
    )


def _root_of_distance(f: Array, g: Array) -> float:
    """The root is taken at the end: what papers call the Fréchet distance is its square, without the root."""
    return float(np.sqrt(frechet_distance(f, g)))


def _predictions(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    v, x_t = rng.standard_normal((2, 4, 6, 8, 3))
    t = np.array([0, 100, 500, 990])
    return [(v, x_t, t, schedule.alphas_cumprod) for schedule in (linear_schedule(), cosine_schedule())]


def _sigmas(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    return [(np.exp(rng.uniform(-4, 4, 6)), sigma_data) for sigma_data in (0.5, 1.0, 2.0)]


def _positions(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    return [(rng.standard_normal((6, 2)), t, rng.uniform(-1, 1, (5, 2))) for t in (0.2, 0.6, 0.9)]


def _features(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    mixing = rng.standard_normal((3, 3))
    return [(rng.standard_normal((40, 3)) @ mixing, rng.standard_normal((n, 3)) + 0.5) for n in (30, 200)]


EXERCISES = (
    Exercise("v-prediction", 13, x0_and_eps, _predictions, (_other_direction, _swapped, _without_roots, _v_as_eps)),
    Exercise(
        "EDM's c_skip and c_out",
        13,
        preconditioning,
        _sigmas,
        (_noise_fraction, _skip_root, _out_squared, _data_part_only),
    ),
    Exercise(
        "Flow matching",
        13,
        marginal_velocity,
        _positions,
        (_towards_data, _equal_weights, _nearest_point, _reversed_time, _without_variance),
    ),
    Exercise(
        "Frechet distance",
        13,
        frechet_distance,
        _features,
        (_means_alone, _without_cross_term, _variances_alone, _over_n, _root_of_distance),
    ),
)
