"""Exercises of chapter 3: the noise predictor and its loss."""

from typing import Any

import numpy as np

from minidiff.diffusion.model import Model
from minidiff.diffusion.schedule import cosine_schedule, linear_schedule
from minidiff.learn.exercise import Exercise

Array = np.ndarray


def noise_prediction_loss(
    model: Model, x0: np.ndarray, t: np.ndarray, eps: np.ndarray, alphas_cumprod: np.ndarray
) -> float:
    """The simple loss: the mean squared error of the noise that a model predicts at x_t (DDPM eq. 14).

    model           a function of x_t (N, H, W, C) and t (N,); returns eps_hat, (N, H, W, C)
    x0              images, (N, H, W, C)
    t               the timestep of each image, int (N,), counted from 0
    eps             standard normal noise, (N, H, W, C)
    alphas_cumprod  alpha_bar of every timestep, (T,)

    Returns a number, the mean over all images, pixels and channels.
    """
    alpha_bar = alphas_cumprod[t].reshape(-1, 1, 1, 1)  # (N, 1, 1, 1)
    x_t = np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * eps
    return float(np.mean((eps - model(x_t, t)) ** 2))


def _noisy(x0: Array, t: Array, eps: Array, alphas_cumprod: Array) -> Array:
    alpha_bar = alphas_cumprod[t].reshape(-1, 1, 1, 1)
    return np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * eps


def _clean_input(model: Model, x0: Array, t: Array, eps: Array, alphas_cumprod: Array) -> float:
    """The model is given x0, without noise: it has to predict the noise in x_t, so it must be given x_t."""
    return float(np.mean((eps - model(x0, t)) ** 2))


def _against_x0(model: Model, x0: Array, t: Array, eps: Array, alphas_cumprod: Array) -> float:
    """The prediction is compared with x0: this model predicts the noise, so compare it with eps."""
    return float(np.mean((x0 - model(_noisy(x0, t, eps, alphas_cumprod), t)) ** 2))


def _sum_of_squares(model: Model, x0: Array, t: Array, eps: Array, alphas_cumprod: Array) -> float:
    """The squares of an image are summed: the loss is their mean over images, pixels and channels."""
    return x0[0].size * noise_prediction_loss(model, x0, t, eps, alphas_cumprod)


def _absolute(model: Model, x0: Array, t: Array, eps: Array, alphas_cumprod: Array) -> float:
    """The absolute value of the error is averaged: the loss is the mean of its square."""
    return float(np.mean(np.abs(eps - model(_noisy(x0, t, eps, alphas_cumprod), t))))


def _off_by_one(model: Model, x0: Array, t: Array, eps: Array, alphas_cumprod: Array) -> float:
    """x_t has the noise of t - 1: t counts from 0 here, so alpha_bar of timestep t is alphas_cumprod[t]."""
    return float(np.mean((eps - model(_noisy(x0, t - 1, eps, alphas_cumprod), t)) ** 2))


def bound_weight(t: np.ndarray, alphas_cumprod: np.ndarray) -> np.ndarray:
    """The weight of (eps - eps_hat)^2 in the variational bound, with the variance beta tilde (DDPM eq. 12).

    t               timesteps from 1 on, int (N,), counted from 0
    alphas_cumprod  alpha_bar of every timestep, (T,)

    Returns beta_t^2 / (2 beta tilde_t alpha_t (1 - alpha_bar_t)), (N,). It can be written with SNR = alpha_bar /
    (1 - alpha_bar) of the timesteps t - 1 and t.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)  # (T,)
    return (snr[t - 1] / snr[t] - 1) / 2


def _without_half(t: Array, alphas_cumprod: Array) -> Array:
    """The factor 1/2 is missing: it is that of the KL divergence, (mean - mean_hat)^2 / (2 variance)."""
    return 2 * bound_weight(t, alphas_cumprod)


def _of_x0(t: Array, alphas_cumprod: Array) -> Array:
    """The weight is that of (x0 - x0_hat)^2: for (eps - eps_hat)^2, which is SNR_t times as large, divide by SNR_t."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return (snr[t - 1] - snr[t]) / 2


def _fixed_large(t: Array, alphas_cumprod: Array) -> Array:
    """The variance is beta_t, DDPM's larger choice: here it is beta tilde_t (DDPM eq. 7)."""
    alpha = alphas_cumprod[t] / alphas_cumprod[t - 1]
    return (1 - alpha) / (2 * alpha * (1 - alphas_cumprod[t]))


def _later(t: Array, alphas_cumprod: Array) -> Array:
    """It is the weight of timestep t + 1: the step of index t goes from alphas_cumprod[t] to alphas_cumprod[t - 1]."""
    return bound_weight(t + 1, alphas_cumprod)


def _quotient_inverted(t: Array, alphas_cumprod: Array) -> Array:
    """The quotient of the SNRs is inverted: the SNR falls as t grows, so SNR_{t-1} / SNR_t is the one above 1."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return (snr[t] / snr[t - 1] - 1) / 2


def _batches(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    x0 = rng.uniform(-1, 1, (4, 8, 6, 3))
    t = np.array([1, 40, 500, 990])
    table = linear_schedule().alphas_cumprod

    def model(x_t: Array, t: Array) -> Array:
        return x_t * np.sqrt(1 - table[t]).reshape(-1, 1, 1, 1)

    return [
        (model, x0, t, rng.standard_normal(x0.shape), alphas) for alphas in (table, cosine_schedule().alphas_cumprod)
    ]


def _timesteps(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    t = np.append([1, 2], rng.integers(3, 990, 6))
    return [(t, linear_schedule().alphas_cumprod), (t, cosine_schedule().alphas_cumprod)]


EXERCISES = (
    Exercise(
        "Noise-prediction loss",
        3,
        noise_prediction_loss,
        _batches,
        (_clean_input, _against_x0, _sum_of_squares, _absolute, _off_by_one),
    ),
    Exercise(
        "Weight of a level in the bound",
        3,
        bound_weight,
        _timesteps,
        (_without_half, _of_x0, _fixed_large, _later, _quotient_inverted),
    ),
)
