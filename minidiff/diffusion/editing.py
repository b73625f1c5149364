"""What a trained model is good for besides drawing from nothing: changing, filling in, going between.

None of these needs training. Pictures x0 are float32 (N, H, W, C) in [-1, 1].
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from minidiff.diffusion.forward import eps_from_x0, q_sample, target
from minidiff.diffusion.noise_levels import noise_levels
from minidiff.diffusion.reverse import Trajectory, sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule
from minidiff.errors import MinidiffError


def redraw(
    model: Callable[..., Any],
    schedule: AnySchedule,
    x0: np.ndarray,
    strength: float,
    rng: Any,
    steps: int = 50,
    sampler: str | Sampler = "ddim",
    cond: Any = None,
) -> Trajectory:
    """Half-drown pictures in noise and walk back from there: SDEdit (Meng et al. 2022, arXiv 2108.01073).

    strength is the share of the walk that is walked: near 0 little changes, 1 leaves nothing of x0. Yields what
    `sample` yields. Raises MinidiffError for a strength that is not from 0 to 1.
    """
    check_strength(strength)
    sampler = Sampler(sampler) if isinstance(sampler, str) else sampler
    walked = round(strength * steps)
    if walked == 0:
        return iter([(-1, x0, x0)])
    eps = rng.standard_normal(x0.shape, dtype=np.float32)
    x_t = q_sample(noise_levels(schedule, steps, sampler).schedule, x0, walked - 1, eps)
    return sample(model, schedule, x0.shape, rng, steps, sampler, cond, x_T=x_t, begin=steps - walked)


def check_strength(strength: float) -> None:
    """Raises MinidiffError for a strength that is not from 0 to 1."""
    if not 0 <= strength <= 1:  # NaN is not
        raise MinidiffError(f"strength must be from 0 to 1, not {strength!r:.80}")


def inpainting(
    model: Callable[..., Any], schedule: AnySchedule, x0: np.ndarray, mask: np.ndarray
) -> Callable[..., Any]:
    """A model for inpainting: where the mask is False it knows the picture, where it is True it asks `model`.

    In the known part there is nothing to guess: what x_t is besides x0 is the noise. So every sampler leads it to
    x0, by the very path that x0 and that noise make, and the model sees the right surroundings at every level.
    mask is bool (N, H, W, 1), or (H, W, 1) for all. Ask at whole timesteps of the schedule: ddpm, ddim, pndm.
    """

    def predict(x_t: np.ndarray, t: np.ndarray, **extras: Any) -> np.ndarray:
        prediction = model(x_t, t, **extras)
        prediction = prediction.numpy() if hasattr(prediction, "numpy") else prediction
        eps = eps_from_x0(schedule, x0, x_t, t)
        return np.where(mask, prediction, target(schedule, x0, t, eps))

    return predict


def blended(
    model: Callable[..., Any], schedule: AnySchedule, x0: np.ndarray, mask: np.ndarray, eps: np.ndarray, first: float
) -> Callable[..., Any]:
    """A model for inpainting that is shown the known part as it would be: x0 with the noise eps, as noisy as t has it.

    So latent diffusion fills in (Avrahami et al. 2023, arXiv 2206.02779). At the first t it is shown the walk's start
    as it is. What the walk leaves in the known part means nothing: take x0 there. mask and t as of `filling_in`.
    """

    def predict(x_t: np.ndarray, t: np.ndarray, **extras: Any) -> Any:
        shown = x_t if t[0] == first else np.where(mask, x_t, q_sample(schedule, x0, t, eps))
        return model(shown, t, **extras)

    return predict


def slerp(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """Between two noises of one shape, share of the way from a to b, along a great circle (Shoemake 1985).

    So the length stays what noise has, which a straight line would cut short: a model knows noise of that length alone.
    """
    a_flat, b_flat = a.reshape(len(a), -1), b.reshape(len(b), -1)  # (N, HWC)
    cosine = (a_flat * b_flat).sum(1) / (np.linalg.norm(a_flat, axis=1) * np.linalg.norm(b_flat, axis=1))
    angle = np.arccos(cosine.clip(-1, 1)).reshape(-1, 1, 1, 1)  # (N, 1, 1, 1)
    straight = np.sin(angle) < 1e-6  # the same noise, or its opposite: no one circle leads there
    safe = np.where(straight, 1, np.sin(angle))
    of_a = np.where(straight, 1 - share, np.sin((1 - share) * angle) / safe)
    of_b = np.where(straight, share, np.sin(share * angle) / safe)
    return (of_a * a + of_b * b).astype(a.dtype)
