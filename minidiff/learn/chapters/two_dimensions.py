"""Exercises of chapter 2: the posterior of a step, the optimal denoiser and the score."""

from typing import TYPE_CHECKING, Any

import numpy as np

from minidiff.data import open_dataset
from minidiff.data.imaging import new_figure, rendered, to_float, to_uint8
from minidiff.data.points import CLUSTERS
from minidiff.diffusion.exact import GaussianMixture
from minidiff.diffusion.schedule import cosine_schedule, linear_schedule
from minidiff.learn.exercise import Answer, Exercise

if TYPE_CHECKING:
    from PIL import Image


def q_posterior(x0: np.ndarray, x_t: np.ndarray, t: int, betas: np.ndarray) -> tuple[np.ndarray, float]:
    """The distribution of x_{t-1}, given x_t and the clean x0: a Gaussian (DDPM eq. 6 and 7).

    With alpha_t = 1 - beta_t, alpha_bar_t the product of alpha_0 to alpha_t, and alpha_bar = 1 before the first step,

        mean      sqrt(alpha_bar_{t-1}) beta_t / (1 - alpha_bar_t) x0
                  + sqrt(alpha_t) (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) x_t
        variance  (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t

    x0, x_t  clean and noisy images, (N, H, W, C)
    t        the timestep of x_t, from 0; at t = 0 the image before it is the clean one
    betas    the variance that each step adds, (T,)

    Returns the mean, (N, H, W, C), and the variance, a number.
    """
    alphas_cumprod = np.cumprod(1 - betas)  # (T,)
    alpha_bar, alpha_bar_prev = alphas_cumprod[t], alphas_cumprod[t - 1] if t > 0 else 1.0
    of_x0 = np.sqrt(alpha_bar_prev) * betas[t] / (1 - alpha_bar)
    of_x_t = np.sqrt(1 - betas[t]) * (1 - alpha_bar_prev) / (1 - alpha_bar)
    return of_x0 * x0 + of_x_t * x_t, (1 - alpha_bar_prev) / (1 - alpha_bar) * betas[t]


def _last_before_first(x0: np.ndarray, x_t: np.ndarray, t: int, betas: np.ndarray) -> tuple[np.ndarray, float]:
    """At t = 0, alphas_cumprod[t - 1] is the last entry of the table. Before the first step alpha_bar is 1."""
    if t > 0:
        return q_posterior(x0, x_t, t, betas)
    alphas_cumprod = np.cumprod(1 - betas)
    alpha_bar, alpha_bar_prev = alphas_cumprod[0], alphas_cumprod[-1]
    of_x0 = np.sqrt(alpha_bar_prev) * betas[0] / (1 - alpha_bar)
    of_x_t = np.sqrt(1 - betas[0]) * (1 - alpha_bar_prev) / (1 - alpha_bar)
    return of_x0 * x0 + of_x_t * x_t, (1 - alpha_bar_prev) / (1 - alpha_bar) * betas[0]


def _exchanged(x0: np.ndarray, x_t: np.ndarray, t: int, betas: np.ndarray) -> tuple[np.ndarray, float]:
    """The coefficients of x0 and x_t are exchanged: for large t it is x_t that x_{t-1} is close to."""
    return q_posterior(x_t, x0, t, betas)


def _variance_beta(x0: np.ndarray, x_t: np.ndarray, t: int, betas: np.ndarray) -> tuple[np.ndarray, float]:
    """The mean is right, but the variance is that of the forward step, beta_t. Knowing x0 makes it smaller."""
    return q_posterior(x0, x_t, t, betas)[0], betas[t]


def _standard_deviation(x0: np.ndarray, x_t: np.ndarray, t: int, betas: np.ndarray) -> tuple[np.ndarray, float]:
    """The mean is right, but the second result is the standard deviation: leave out the square root."""
    mean, variance = q_posterior(x0, x_t, t, betas)
    return mean, np.sqrt(variance)


def _missing_roots(x0: np.ndarray, x_t: np.ndarray, t: int, betas: np.ndarray) -> tuple[np.ndarray, float]:
    """Square roots are missing in the mean: x0 has sqrt(alpha_bar_{t-1}) and x_t has sqrt(alpha_t)."""
    alphas_cumprod = np.cumprod(1 - betas)
    alpha_bar, alpha_bar_prev = alphas_cumprod[t], alphas_cumprod[t - 1] if t > 0 else 1.0
    of_x0 = alpha_bar_prev * betas[t] / (1 - alpha_bar)
    of_x_t = (1 - betas[t]) * (1 - alpha_bar_prev) / (1 - alpha_bar)
    return of_x0 * x0 + of_x_t * x_t, (1 - alpha_bar_prev) / (1 - alpha_bar) * betas[t]


def _steps(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    x0, x_t = rng.uniform(-1, 1, (2, 3, 4, 4, 2))
    return [(x0, x_t, t, linear_schedule(100, 1e-3, 0.2).betas) for t in (0, 1, 40, 99)]


def optimal_denoiser(x_t: np.ndarray, alpha_bar: float, images: np.ndarray) -> np.ndarray:
    """E[x0 | x_t] if x0 is one of K images, each with probability 1 / K.

    x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps, so image m_k has the posterior probability

        w_k proportional to exp(-|x_t - sqrt(alpha_bar) m_k|^2 / (2 (1 - alpha_bar))),    sum_k w_k = 1,

    and the result is sum_k w_k m_k. Images have many pixels, so the exponents may be below -1000.

    x_t        noisy images, each flattened, (N, D)
    alpha_bar  a number between 0 and 1
    images     the clean images, (K, D)

    Returns the expected clean image of each noisy one, (N, D).
    """
    difference = x_t[:, None] - np.sqrt(alpha_bar) * images  # (N, K, D)
    log_weights = -np.square(difference).sum(2) / (2 * (1 - alpha_bar))  # (N, K)
    weights = np.exp(log_weights - log_weights.max(1, keepdims=True))  # the largest is 1, so their sum is not 0
    return weights / weights.sum(1, keepdims=True) @ images  # (N, D)


def _nearest(x_t: np.ndarray, alpha_bar: float, images: np.ndarray) -> np.ndarray:
    """The most probable image is returned. The expectation is the mean of all, weighted by their probabilities."""
    distance = np.square(x_t[:, None] - np.sqrt(alpha_bar) * images).sum(2)
    return images[distance.argmin(1)]


def _without_signal(x_t: np.ndarray, alpha_bar: float, images: np.ndarray) -> np.ndarray:
    """x_t is compared with the images themselves: noise is added to sqrt(alpha_bar) times an image."""
    weights = _softmax(-np.square(x_t[:, None] - images).sum(2) / (2 * (1 - alpha_bar)))
    return weights @ images


def _without_variance(x_t: np.ndarray, alpha_bar: float, images: np.ndarray) -> np.ndarray:
    """The squared distance is not divided by the variance of the noise, 1 - alpha_bar."""
    weights = _softmax(-np.square(x_t[:, None] - np.sqrt(alpha_bar) * images).sum(2) / 2)
    return weights @ images


def _without_half(x_t: np.ndarray, alpha_bar: float, images: np.ndarray) -> np.ndarray:
    """The factor 1/2 in the exponent is missing: a Gaussian's density is exp(-distance^2 / (2 variance))."""
    weights = _softmax(-np.square(x_t[:, None] - np.sqrt(alpha_bar) * images).sum(2) / (1 - alpha_bar))
    return weights @ images


def _underflow(x_t: np.ndarray, alpha_bar: float, images: np.ndarray) -> np.ndarray:
    """exp(-1000) is 0 in floating point, and 0 / 0 is NaN: subtract each row's largest exponent before exp."""
    weights = np.exp(-np.square(x_t[:, None] - np.sqrt(alpha_bar) * images).sum(2) / (2 * (1 - alpha_bar)))
    with np.errstate(invalid="ignore"):
        return weights / weights.sum(1, keepdims=True) @ images


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def _sets(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    """Points in a plane, and images with so many pixels that exp alone gives 0."""
    sets = []
    for alpha_bar, shape in ((0.5, (5, 2)), (0.05, (6, 12)), (0.1, (4, 3000))):
        images = rng.uniform(-1, 1, shape)
        noise = rng.standard_normal((3, shape[1]))
        sets.append((np.sqrt(alpha_bar) * images[:3] + np.sqrt(1 - alpha_bar) * noise, alpha_bar, images))
    return sets


def _denoised_cats(answer: Answer) -> "Image.Image":
    """A cat at seven noise levels, and below it the expected image, of sixteen possible ones."""
    images = to_float(open_dataset("cats_dogs").take(np.arange(8, 24))).astype(np.float64)  # (16, 32, 32, 3)
    flat, eps = images.reshape(16, -1), np.random.default_rng(0).standard_normal((1, images[0].size))
    log_snrs = (4, 0, -2, -4, -5, -6, -8)
    figure = new_figure(9, 2.9)
    axes = figure.subplots(2, len(log_snrs), squeeze=False)
    for column, log_snr in zip(axes.T, log_snrs, strict=True):
        alpha_bar = 1 / (1 + np.exp(-log_snr))
        x_t = np.sqrt(alpha_bar) * flat[9:10] + np.sqrt(1 - alpha_bar) * eps
        for axis, image in zip(column, (x_t, answer(x_t, alpha_bar, flat)), strict=True):
            axis.imshow(to_uint8(image).reshape(images[0].shape))
            axis.set(xticks=[], yticks=[])
        column[0].set_title(f"log-SNR {log_snr}", fontsize=9)
    axes[0, 0].set_ylabel("x_t")
    axes[1, 0].set_ylabel("E[x0 | x_t]")
    return rendered(figure)


def score(x_t: np.ndarray, x0_hat: np.ndarray, alpha_bar: float) -> np.ndarray:
    """The score grad log p(x_t) from the denoiser's result, by Tweedie's formula.

        grad log p(x_t) = (sqrt(alpha_bar) E[x0 | x_t] - x_t) / (1 - alpha_bar)

    x_t        noisy points or images, any shape
    x0_hat     E[x0 | x_t], of the same shape
    alpha_bar  a number between 0 and 1

    Returns the score, of the same shape.
    """
    return (np.sqrt(alpha_bar) * x0_hat - x_t) / (1 - alpha_bar)


def _sign(x_t: np.ndarray, x0_hat: np.ndarray, alpha_bar: float) -> np.ndarray:
    """The sign is wrong: the score points to where the density is higher, from x_t towards the expected image."""
    return -score(x_t, x0_hat, alpha_bar)


def _is_eps(x_t: np.ndarray, x0_hat: np.ndarray, alpha_bar: float) -> np.ndarray:
    """Divided by sqrt(1 - alpha_bar), it is the expected noise, negative: divide by the variance, 1 - alpha_bar."""
    return score(x_t, x0_hat, alpha_bar) * np.sqrt(1 - alpha_bar)


def _unscaled_x0(x_t: np.ndarray, x0_hat: np.ndarray, alpha_bar: float) -> np.ndarray:
    """x0_hat needs the signal coefficient sqrt(alpha_bar): x_t is noise around sqrt(alpha_bar) x0, not around x0."""
    return (x0_hat - x_t) / (1 - alpha_bar)


def _without_root(x_t: np.ndarray, x0_hat: np.ndarray, alpha_bar: float) -> np.ndarray:
    """The square root is missing: x0_hat is multiplied by sqrt(alpha_bar), not by alpha_bar."""
    return (alpha_bar * x0_hat - x_t) / (1 - alpha_bar)


def _estimates(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    return [(*rng.standard_normal((2, 5, 1, 1, 2)), alpha_bar) for alpha_bar in (0.02, 0.5, 0.97)]


def _score_fields(answer: Answer) -> "Image.Image":
    """The score of two clusters at three noise levels, as arrows from a grid of points."""
    mixture = GaussianMixture(CLUSTERS.means, CLUSTERS.stds[:, None], CLUSTERS.weights)
    grid = np.linspace(-1.6, 1.6, 15)
    x_t = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 1, 1, 2)  # (225, 1, 1, 2)
    figure = new_figure(9, 3.3)
    for axis, t in zip(figure.subplots(1, 3), (600, 350, 100), strict=True):
        alpha_bar = float(cosine_schedule().alphas_cumprod[t])
        arrows = answer(x_t, mixture.x0_and_eps(x_t, alpha_bar)[0], alpha_bar)
        axis.quiver(*x_t.reshape(-1, 2).T, *arrows.reshape(-1, 2).T, color="#5b6f8f", pivot="mid")
        axis.plot(*(np.sqrt(alpha_bar) * CLUSTERS.means.T), "o", color="#b5482f")
        axis.set(title=f"log-SNR {np.log(alpha_bar / (1 - alpha_bar)):.1f}", aspect="equal")
    return rendered(figure)


EXERCISES = (
    Exercise(
        "Posterior of a step",
        2,
        q_posterior,
        _steps,
        (_last_before_first, _exchanged, _variance_beta, _standard_deviation, _missing_roots),
    ),
    Exercise(
        "Optimal denoiser",
        2,
        optimal_denoiser,
        _sets,
        (_nearest, _without_signal, _without_variance, _without_half, _underflow),
        image=_denoised_cats,
    ),
    Exercise("Score", 2, score, _estimates, (_sign, _is_eps, _unscaled_x0, _without_root), image=_score_fields),
)
