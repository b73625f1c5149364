"""Exercises of chapter 1: forward diffusion."""

from typing import Any

import numpy as np

from minidiff.diffusion.schedule import cosine_schedule, linear_schedule
from minidiff.learn.exercise import Exercise


def q_sample(x0: np.ndarray, t: np.ndarray, eps: np.ndarray, alphas_cumprod: np.ndarray) -> np.ndarray:
    """Add noise to images: x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps (DDPM eq. 4).

    x0              images, (N, H, W, C)
    t               the timestep of each image, int (N,), counted from 0
    eps             standard normal noise, (N, H, W, C)
    alphas_cumprod  alpha_bar of every timestep, (T,)

    Returns x_t, (N, H, W, C).
    """
    alpha_bar = alphas_cumprod[t].reshape(-1, 1, 1, 1)  # (N, 1, 1, 1)
    return np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * eps


def _without_roots(x0: np.ndarray, t: np.ndarray, eps: np.ndarray, alphas_cumprod: np.ndarray) -> np.ndarray:
    """The square roots are missing: alpha_bar and 1 - alpha_bar are variances; their roots are the coefficients."""
    alpha_bar = alphas_cumprod[t].reshape(-1, 1, 1, 1)
    return alpha_bar * x0 + (1 - alpha_bar) * eps


def _one_minus_root(x0: np.ndarray, t: np.ndarray, eps: np.ndarray, alphas_cumprod: np.ndarray) -> np.ndarray:
    """The noise coefficient is sqrt(1 - alpha_bar), not 1 - sqrt(alpha_bar): squares add up to 1, not coefficients."""
    root = np.sqrt(alphas_cumprod[t]).reshape(-1, 1, 1, 1)
    return root * x0 + (1 - root) * eps


def _off_by_one(x0: np.ndarray, t: np.ndarray, eps: np.ndarray, alphas_cumprod: np.ndarray) -> np.ndarray:
    """One timestep too early: t counts from 0 here, so alphas_cumprod[t] is the paper's alpha_bar of t + 1."""
    return q_sample(x0, t - 1, eps, alphas_cumprod)


def _noisy_images(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    x0 = rng.uniform(-1, 1, (4, 8, 6, 3))
    t = np.array([0, 10, 500, 999])
    tables = (linear_schedule().alphas_cumprod, cosine_schedule().alphas_cumprod)
    return [(x0, t, rng.standard_normal(x0.shape), table) for table in tables]


EXERCISES = (Exercise("Add noise", 1, q_sample, _noisy_images, (_without_roots, _one_minus_root, _off_by_one)),)
