"""Exercises of chapter 8: the autoencoder."""

from typing import TYPE_CHECKING, Any

import numpy as np

from minidiff.data.imaging import new_figure, rendered
from minidiff.learn.exercise import Answer, Exercise

if TYPE_CHECKING:
    from PIL import Image


def reparameterised_sample(mean: np.ndarray, log_variance: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """A sample of a diagonal Gaussian, written as a function of standard normal noise: mean + std eps.

    mean          of each latent, (N, h, w, C)
    log_variance  log of the variance of each latent, (N, h, w, C)
    eps           standard normal noise, (N, h, w, C)

    Returns the latents z, (N, h, w, C).
    """
    return mean + np.exp(log_variance / 2) * eps


def _variance_as_std(mean: np.ndarray, log_variance: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """The noise is scaled by the variance; it must be scaled by its square root, exp(log_variance / 2)."""
    return mean + np.exp(log_variance) * eps


def _logarithm_as_std(mean: np.ndarray, log_variance: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """The noise is scaled by the logarithm of the variance, which can be negative: take its exponential first."""
    return mean + log_variance * eps


def _unit_std(mean: np.ndarray, log_variance: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """The noise has standard deviation 1 for every latent: scale it by the one that log_variance implies."""
    return mean + eps


def _mean_scaled(mean: np.ndarray, log_variance: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """The standard deviation multiplies the mean as well: it scales the noise alone."""
    return np.exp(log_variance / 2) * (mean + eps)


def kl_divergence(mean: np.ndarray, log_variance: np.ndarray) -> float:
    """KL divergence of a diagonal Gaussian from N(0, I), divided by the number of its elements.

    For one element with mean m and variance s2 it is 1/2 (m^2 + s2 - 1 - log s2).

    mean          of each latent, (N, h, w, C)
    log_variance  log of the variance of each latent, (N, h, w, C)

    Returns the mean over all elements, a number, in nats.
    """
    return float(np.mean(0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance)))


def _sum(mean: np.ndarray, log_variance: np.ndarray) -> float:
    """The result is the sum over all elements: divide it by their number."""
    return kl_divergence(mean, log_variance) * mean.size


def _std_as_variance(mean: np.ndarray, log_variance: np.ndarray) -> float:
    """exp(log_variance / 2) is the standard deviation: this term of the divergence is the variance."""
    return float(np.mean(0.5 * (mean**2 + np.exp(log_variance / 2) - 1 - log_variance)))


def _without_half(mean: np.ndarray, log_variance: np.ndarray) -> float:
    """The result is twice as large as it should be: every term has the factor 1/2 of a Gaussian's exponent."""
    return 2 * kl_divergence(mean, log_variance)


def _wrong_sign(mean: np.ndarray, log_variance: np.ndarray) -> float:
    """The logarithm has the wrong sign: the divergence must grow without bound as the variance goes to 0."""
    return float(np.mean(0.5 * (mean**2 + np.exp(log_variance) - 1 + log_variance)))


def _reverse(mean: np.ndarray, log_variance: np.ndarray) -> float:
    """The two distributions are exchanged: take the expectation over the Gaussian, not over N(0, I)."""
    precision = np.exp(-log_variance)
    return float(np.mean(0.5 * (precision * (1 + mean**2) - 1 + log_variance)))


def _gaussians(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    shapes = ((2, 4, 3, 2), (1, 2, 2, 6))
    return [(rng.standard_normal(shape), rng.uniform(-3, 1, shape)) for shape in shapes]


def _gaussians_and_noise(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    return [(*arguments, rng.standard_normal(arguments[0].shape)) for arguments in _gaussians(rng)]


def _histograms(answer: Answer) -> "Image.Image":
    """Histograms of samples of three Gaussians, beside the densities that they should have."""
    eps = np.random.default_rng(0).standard_normal((1, 64, 64, 1))
    z = np.linspace(-3, 3, 301)
    figure = new_figure(9, 2.7)
    axes = figure.subplots(1, 3, sharey=True)
    for axis, mean, std in zip(axes, (-1.0, 0.0, 1.0), (0.3, 1.0, 0.5), strict=True):
        samples = answer(np.full_like(eps, mean), np.full_like(eps, 2 * np.log(std)), eps)
        axis.hist(samples.ravel(), z[::5], density=True, color="#c28426", alpha=0.6, label="your samples")
        density = np.exp(-(((z - mean) / std) ** 2) / 2) / (std * np.sqrt(2 * np.pi))
        axis.plot(z, density, color="#5b6f8f", label="the Gaussian")
        axis.set(title=f"mean {mean:g}, standard deviation {std:g}", xlabel="latent z")
    axes[0].set_ylabel("density")
    axes[2].legend(loc="upper left")
    return rendered(figure)


EXERCISES = (
    Exercise(
        "Reparameterised sample",
        8,
        reparameterised_sample,
        _gaussians_and_noise,
        (_variance_as_std, _logarithm_as_std, _unit_std, _mean_scaled),
        _histograms,
    ),
    Exercise(
        "KL divergence",
        8,
        kl_divergence,
        _gaussians,
        (_sum, _std_as_variance, _without_half, _wrong_sign, _reverse),
    ),
)
