"""Classifier-free guidance: a wrapper around a conditional model.

Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022 (arXiv 2207.12598). A model that was trained with its labels
replaced by the null class now and then makes both a conditional and an unconditional prediction; guidance
extrapolates from the unconditional one beyond the conditional one.
"""

import numpy as np

from minidiff.diffusion.model import Model, evaluate


def guided(
    model: Model,
    null: int | np.ndarray,
    scale: float,
    rescale: float = 0.0,
    interval: tuple[float, float] = (0, float("inf")),
    negative: int | None = None,
) -> Model:
    """A model that predicts p_null + scale (p_cond - p_null), by one evaluation of `model` on a batch twice as large.

    null      the null class; for text, the embeddings of the empty prompt, or of a negative prompt
    scale     guidance scale: 1 is the conditional prediction, 0 the unconditional one (w + 1 in the paper)
    rescale   how far the prediction's standard deviation is moved to p_cond's, 0 to 1 (phi in Lin et al. eq. 15, 16)
    interval  guidance is applied at timesteps lowest <= t <= highest (Kynkäänniemi et al. 2024, arXiv 2404.07724);
              elsewhere the prediction is the conditional one
    negative  a class in the place of null, from which guidance leads away

    cond is labels (N,) int, or embeddings (N, S, D). The result is in host memory.
    """
    lowest, highest = interval

    def predict(x_t: np.ndarray, t: np.ndarray, cond: np.ndarray) -> np.ndarray:
        if scale == 1 or not lowest <= t[0] <= highest:
            return evaluate(model, x_t, t, cond)
        null_cond = np.full_like(cond, null if negative is None else negative)
        both = evaluate(model, np.concatenate([x_t, x_t]), np.concatenate([t, t]), np.concatenate([cond, null_cond]))
        p_cond, p_null = np.split(both, 2)  # (N, H, W, C) each
        prediction = p_null + float(scale) * (p_cond - p_null)
        return _rescaled(prediction, p_cond, rescale) if rescale else prediction

    return predict


def _rescaled(prediction: np.ndarray, p_cond: np.ndarray, rescale: float) -> np.ndarray:
    """Each image's prediction with its standard deviation moved towards that of p_cond."""
    axes = (1, 2, 3)
    ratio = p_cond.std(axes, keepdims=True) / prediction.std(axes, keepdims=True)  # (N, 1, 1, 1)
    return (float(rescale) * ratio + float(1 - rescale)) * prediction
