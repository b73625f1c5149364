"""Exercises of chapter 1: forward diffusion."""

from typing import TYPE_CHECKING, Any

import numpy as np

from minidiff.data import open_dataset
from minidiff.data.imaging import strip, to_float, to_uint8
from minidiff.diffusion.schedule import cosine_schedule, linear_schedule
from minidiff.learn.exercise import Answer, Exercise

if TYPE_CHECKING:
    from PIL import Image

CAT = 17  # an image of the built-in dataset


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


def _noisy_cats(answer: Answer) -> "Image.Image":
    """One cat at ten noise levels, evenly spaced in log-SNR, all with the same noise."""
    alphas_cumprod = cosine_schedule().alphas_cumprod
    log_snrs = np.linspace(4.5, -2.25, 10)
    t = np.array([timestep_of_snr(alphas_cumprod, np.exp(log_snr)) for log_snr in log_snrs])
    cat = to_float(open_dataset("cats_dogs").take(np.array([CAT]))).repeat(len(t), 0)  # (10, 32, 32, 3)
    eps = np.random.default_rng(0).standard_normal(cat.shape[1:])
    x_t = answer(cat, t, np.broadcast_to(eps, cat.shape), alphas_cumprod)
    return strip(to_uint8(x_t), [f"log-SNR {log_snr:g}" for log_snr in log_snrs])


def timestep_of_snr(alphas_cumprod: np.ndarray, snr: float) -> int:
    """The first timestep whose signal-to-noise ratio is at most `snr`; with snr = 1, where noise overtakes signal.

    The ratio at timestep t is SNR_t = alpha_bar_t / (1 - alpha_bar_t). It falls with t, and at the last is below `snr`.

    alphas_cumprod  alpha_bar of every timestep, (T,), falling
    snr             a number above 0

    Returns t, an int, counted from 0.
    """
    return int(np.argmax(alphas_cumprod / (1 - alphas_cumprod) <= snr))  # the first True


def _last_above(alphas_cumprod: np.ndarray, snr: float) -> int:
    """One timestep too early: there the ratio is still above snr. The first one at or below it is the next."""
    return timestep_of_snr(alphas_cumprod, snr) - 1


def _of_coefficients(alphas_cumprod: np.ndarray, snr: float) -> int:
    """The ratio of the coefficients, sqrt(alpha_bar) / sqrt(1 - alpha_bar), was taken; SNR is that of their squares."""
    return timestep_of_snr(alphas_cumprod, snr**2)


def _of_alpha_bar(alphas_cumprod: np.ndarray, snr: float) -> int:
    """It is alpha_bar itself that is compared with snr. The ratio is signal to noise: alpha_bar / (1 - alpha_bar)."""
    return int(np.argmax(alphas_cumprod <= snr))


def _at_one_half(alphas_cumprod: np.ndarray, snr: float) -> int:
    """Right for snr = 1, where alpha_bar is 1/2, but not for another snr: compare the ratio with the argument."""
    return timestep_of_snr(alphas_cumprod, 1)


def _noise_to_signal(alphas_cumprod: np.ndarray, snr: float) -> int:
    """The noise-to-signal ratio, (1 - alpha_bar) / alpha_bar, was taken; SNR is its inverse."""
    return timestep_of_snr(alphas_cumprod, 1 / snr)


def _tables(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    tables = (linear_schedule().alphas_cumprod, cosine_schedule().alphas_cumprod)
    made_up = np.cumprod(1 - rng.uniform(0, 0.2, 60))
    return [(table, snr) for table in (*tables, made_up) for snr in (1.0, 0.1, 3.0)]


EXERCISES = (
    Exercise(
        "Add noise", 1, q_sample, _noisy_images, (_without_roots, _one_minus_root, _off_by_one), image=_noisy_cats
    ),
    Exercise(
        "Where signal equals noise",
        1,
        timestep_of_snr,
        _tables,
        (_last_above, _of_coefficients, _of_alpha_bar, _at_one_half, _noise_to_signal),
    ),
)
