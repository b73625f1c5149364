"""Classifier-free guidance: a wrapper that makes a model say more of what it is asked for.

Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022 (arXiv 2207.12598). A model that was trained with its
label left out now and then, the null class in its place, can be asked twice: with the label and without. The
difference is what the label adds, and guidance adds more of it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np


def guided(
    model: Callable[..., Any],
    null: int | np.ndarray,
    scale: float,
    rescale: float = 0.0,
    interval: tuple[float, float] = (0, float("inf")),
    negative: int | None = None,
) -> Callable[..., np.ndarray]:
    """A model that predicts p_null + scale (p_cond - p_null): `model` is asked once, for a batch twice as large.

    null      the class that stands for no label; of texts, the embeddings of none, or of one to lead away from
    scale     1 is the model as it is, 0 leaves the label out, more says more of it (w + 1 in the paper)
    rescale   how far the prediction's standard deviation is brought back to p_cond's, 0 to 1 (Lin et al. eq. 15, 16)
    interval  the timesteps lowest <= t <= highest that are guided (Kynkäänniemi et al. 2024, arXiv 2404.07724);
              elsewhere the model is asked as it is
    negative  a class to lead away from, in the place of null

    cond is labels (N,) int, or embeddings (N, S, D). The result is in host memory.
    """
    lowest, highest = interval

    def predict(x_t: np.ndarray, t: np.ndarray, cond: np.ndarray) -> np.ndarray:
        if scale == 1 or not lowest <= t[0] <= highest:
            return _array(model(x_t, t, cond=cond))
        away = np.full_like(cond, null if negative is None else negative)
        both = _array(model(np.concatenate([x_t, x_t]), np.concatenate([t, t]), cond=np.concatenate([cond, away])))
        p_cond, p_null = np.split(both, 2)  # (N, H, W, C) each
        prediction = p_null + np.float32(scale) * (p_cond - p_null)
        return _rescaled(prediction, p_cond, rescale) if rescale else prediction

    return predict


def _rescaled(prediction: np.ndarray, like: np.ndarray, share: float) -> np.ndarray:
    """Each picture's prediction with its standard deviation moved toward that of `like`."""
    axes = (1, 2, 3)
    ratio = like.std(axes, keepdims=True) / prediction.std(axes, keepdims=True)  # (N, 1, 1, 1)
    return (np.float32(share) * ratio + np.float32(1 - share)) * prediction


def _array(prediction: Any) -> np.ndarray:
    return prediction.numpy() if hasattr(prediction, "numpy") else prediction
