"""Editing with a trained model: image-to-image (SDEdit), inpainting, and spherical interpolation of noise.

None of these needs training. Images x0 are float32 (N, H, W, C) in [-1, 1].
"""

from typing import Any

import numpy as np

from minidiff.diffusion.forward import eps_from_x0, q_sample, target
from minidiff.diffusion.model import Model, evaluate
from minidiff.diffusion.noise_levels import noise_levels
from minidiff.diffusion.reverse import Trajectory, sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule
from minidiff.engine.rng import Rng
from minidiff.errors import MinidiffError


def redraw(
    model: Model,
    schedule: AnySchedule,
    x0: np.ndarray,
    strength: float,
    rng: Rng,
    steps: int = 50,
    sampler: str | Sampler = "ddim",
    cond: Any = None,
) -> Trajectory:
    """Image-to-image: add noise to images and sample from there (SDEdit, Meng et al. 2022, arXiv 2108.01073).

    strength is the fraction of the steps that are taken (`steps_taken`), the last ones: near 0 little changes, at 1
    (almost) nothing of x0 remains. Yields what `sample` yields. Raises MinidiffError for a strength that is not from 0
    to 1.
    """
    sampler = Sampler(sampler) if isinstance(sampler, str) else sampler
    taken = steps_taken(strength, steps)
    if taken == 0:
        return iter([(-1, x0, x0)])
    eps = rng.standard_normal(x0.shape, dtype=np.float32)
    x_t = q_sample(noise_levels(schedule, steps, sampler).schedule, x0, taken - 1, eps)
    return sample(model, schedule, x0.shape, rng, steps, sampler, cond, x_T=x_t, begin=steps - taken)


def steps_taken(strength: float, steps: int) -> int:
    """How many of the sampling steps image-to-image takes: strength * steps, rounded down as in diffusers.

    Raises MinidiffError for a strength that is not from 0 to 1.
    """
    check_strength(strength)
    return int(strength * steps)


def check_strength(strength: float) -> None:
    """Raises MinidiffError for a strength that is not from 0 to 1."""
    if not 0 <= strength <= 1:  # NaN is not
        raise MinidiffError(f"strength must be from 0 to 1, not {strength!r:.80}")


def inpainting(model: Model, schedule: AnySchedule, x0: np.ndarray, mask: np.ndarray) -> Model:
    """A model for inpainting: `model` where the mask is True; where it is False, the target computed from x0 and x_t.

    In the known region the noise is what x_t holds besides x0, so samplers with a clean end reach x0 there, and at
    every noise level `model` sees the known region with the noise of that level.
    mask is bool (N, H, W, 1), or (H, W, 1) for all images. t must be a timestep of the schedule: sample with ddpm, ddim
    or pndm.
    """

    def predict(x_t: np.ndarray, t: np.ndarray, cond: Any = None) -> np.ndarray:
        eps = eps_from_x0(schedule, x0, x_t, t)
        return np.where(mask, evaluate(model, x_t, t, cond), target(schedule, x0, t, eps))

    return predict


def blended(
    model: Model, schedule: AnySchedule, x0: np.ndarray, mask: np.ndarray, eps: np.ndarray, first_t: float
) -> Model:
    """A model for inpainting whose known region is replaced by x0 with the noise eps at the level of t.

    Blended latent diffusion (Avrahami et al. 2023, arXiv 2206.02779). At first_t, the first timestep, x_t is used
    unchanged: it is noise everywhere. The samples are not valid in the known region: take x0 there. mask and t as
    in `inpainting`.
    """

    def predict(x_t: np.ndarray, t: np.ndarray, **extras: Any) -> Any:
        blend = x_t if t[0] == first_t else np.where(mask, x_t, q_sample(schedule, x0, t, eps))
        return model(blend, t, **extras)

    return predict


def slerp(a: np.ndarray, b: np.ndarray, fraction: float) -> np.ndarray:
    """Spherical linear interpolation (Shoemake 1985) of noise a and b (N, H, W, C), image by image.

    fraction  0 gives a, 1 gives b

    Keeps the norm that Gaussian noise has, the only one that the model was trained on; linear interpolation shrinks it.
    """
    a_flat, b_flat = a.reshape(len(a), -1), b.reshape(len(b), -1)  # (N, HWC)
    cosine = (a_flat * b_flat).sum(1) / (np.linalg.norm(a_flat, axis=1) * np.linalg.norm(b_flat, axis=1))
    angle = np.arccos(cosine.clip(-1, 1)).reshape(-1, 1, 1, 1)  # (N, 1, 1, 1)
    parallel = np.sin(angle) < 1e-6  # the same noise, or its negative: no unique great circle; interpolate linearly
    sine = np.where(parallel, 1, np.sin(angle))
    weight_a = np.where(parallel, 1 - fraction, np.sin((1 - fraction) * angle) / sine)
    weight_b = np.where(parallel, fraction, np.sin(fraction * angle) / sine)
    return (weight_a * a + weight_b * b).astype(a.dtype)
