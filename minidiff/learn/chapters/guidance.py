"""Exercises of chapter 11: classifier-free guidance and classifier guidance."""

from typing import TYPE_CHECKING, Any

import numpy as np

from minidiff.data.imaging import new_figure, rendered
from minidiff.diffusion.exact import GaussianMixture, exact_model
from minidiff.diffusion.reverse import last_x_t, sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import cosine_schedule
from minidiff.learn.exercise import Answer, Exercise

if TYPE_CHECKING:
    from PIL import Image


def guided(p_cond: np.ndarray, p_null: np.ndarray, scale: float) -> np.ndarray:
    """Classifier-free guidance (Ho & Salimans 2022): from the unconditional prediction beyond the conditional one.

    p_cond  the model's prediction with the condition, (N, H, W, C)
    p_null  its prediction with the null condition, (N, H, W, C)
    scale   guidance scale w: 0 gives the unconditional prediction, 1 the conditional one, more goes beyond it

    Returns the guided prediction, (N, H, W, C).
    """
    return p_null + scale * (p_cond - p_null)


def _paper_scale(p_cond: np.ndarray, p_null: np.ndarray, scale: float) -> np.ndarray:
    """Scale 0 gives the conditional prediction, as in the paper; here scale 1 does, and 0 is unconditional."""
    return p_cond + scale * (p_cond - p_null)


def _exchanged(p_cond: np.ndarray, p_null: np.ndarray, scale: float) -> np.ndarray:
    """Conditional and unconditional prediction are exchanged: scale 0 must give p_null, and scale 1 p_cond."""
    return p_cond + scale * (p_null - p_cond)


def _without_start(p_cond: np.ndarray, p_null: np.ndarray, scale: float) -> np.ndarray:
    """The difference is to be added to the unconditional prediction, which is missing."""
    return scale * (p_cond - p_null)


def _scaled_conditional(p_cond: np.ndarray, p_null: np.ndarray, scale: float) -> np.ndarray:
    """The coefficients of the two predictions must add up to 1: scale and 1 - scale."""
    return p_null + scale * p_cond


def classifier_guided(eps_hat: np.ndarray, gradient: np.ndarray, alpha_bar: np.ndarray, scale: float) -> np.ndarray:
    """Classifier guidance (Dhariwal & Nichol 2021, algorithm 2): the predicted noise with a classifier's gradient.

    The score is grad log p(x_t) = -eps_hat / sqrt(1 - alpha_bar). Guidance adds scale times grad log p(y | x_t) to it.

    eps_hat    predicted noise of the unconditional model, (N, H, W, C)
    gradient   grad log p(y | x_t), of the classifier, (N, H, W, C)
    alpha_bar  of the noise level of each image, (N,)
    scale      factor of the gradient: 1 is Bayes' rule

    Returns the predicted noise whose score is the guided one, (N, H, W, C).
    """
    return eps_hat - scale * np.sqrt(1 - alpha_bar).reshape(-1, 1, 1, 1) * gradient


def _plus(eps_hat: np.ndarray, gradient: np.ndarray, alpha_bar: np.ndarray, scale: float) -> np.ndarray:
    """The sign is wrong: noise points away from the data and the score towards them, so the gradient is subtracted."""
    return classifier_guided(eps_hat, gradient, alpha_bar, -scale)


def _without_root(eps_hat: np.ndarray, gradient: np.ndarray, alpha_bar: np.ndarray, scale: float) -> np.ndarray:
    """1 - alpha_bar is the variance of the noise; score and noise differ by the standard deviation, its square root."""
    return eps_hat - scale * (1 - alpha_bar).reshape(-1, 1, 1, 1) * gradient


def _without_noise_level(eps_hat: np.ndarray, gradient: np.ndarray, alpha_bar: np.ndarray, scale: float) -> np.ndarray:
    """The gradient is added to the score, not to the noise: multiply it by sqrt(1 - alpha_bar)."""
    return eps_hat - scale * gradient


def _signal(eps_hat: np.ndarray, gradient: np.ndarray, alpha_bar: np.ndarray, scale: float) -> np.ndarray:
    """sqrt(alpha_bar) is the signal coefficient; score and noise differ by the noise coefficient."""
    return eps_hat - scale * np.sqrt(alpha_bar).reshape(-1, 1, 1, 1) * gradient


def _predictions(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    shape = (2, 4, 4, 3)
    return [(rng.standard_normal(shape), rng.standard_normal(shape), scale) for scale in (0.0, 1.0, 7.5)]


def _gradients(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    shape = (4, 5, 2, 3)  # alpha_bar (4,) does not broadcast by accident
    alpha_bar = np.array([0.05, 0.3, 0.6, 0.9])
    return [(rng.standard_normal(shape), rng.standard_normal(shape), alpha_bar, scale) for scale in (1.0, 3.5)]


def _sharpened(answer: Answer) -> "Image.Image":
    """Samples of one of two classes in the plane, by the answer's guided prediction at three scales."""
    means = np.array([[-0.4, 0.0], [0.4, 0.0]])
    schedule, n = cosine_schedule(), 2000
    model = exact_model(GaussianMixture(means, std=0.3), schedule)
    figure = new_figure(9, 3.3)
    axes = figure.subplots(1, 3, sharey=True)
    for axis, scale in zip(axes, (0, 1, 4), strict=True):

        def model_guided(x_t: np.ndarray, t: np.ndarray, cond: np.ndarray, scale: float = scale) -> np.ndarray:
            return answer(model(x_t, t, cond), model(x_t, t), scale)

        rng, label = np.random.default_rng(0), np.ones(n, int)
        trajectory = sample(model_guided, schedule, (n, 1, 1, 2), rng, 25, Sampler("ddim", clip=None), label)
        axis.plot(*last_x_t(trajectory).reshape(n, 2).T, ".", color="#5b6f8f", markersize=2, alpha=0.5, label="samples")
        axis.plot(*means[1], "o", color="#c28426", label="mean of the class")
        axis.plot(*means[0], "x", color="#b5482f", label="mean of the other")
        axis.set(title=f"guidance scale {scale}", xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal")
    axes[0].legend(loc="upper left", fontsize=8)
    return rendered(figure)


EXERCISES = (
    Exercise(
        "Classifier-free guidance",
        11,
        guided,
        _predictions,
        (_paper_scale, _exchanged, _without_start, _scaled_conditional),
        _sharpened,
    ),
    Exercise(
        "Classifier guidance",
        11,
        classifier_guided,
        _gradients,
        (_plus, _without_root, _without_noise_level, _signal),
    ),
)
