"""Previews of a sampling loop: the estimate x0_hat as an image file, every few steps; of latents by a linear map."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from minidiff.data import imaging
from minidiff.formats.pipeline import Pipeline, TextPipeline
from minidiff.sampling.text_to_image import decode

EVERY = 5  # steps between previews
FITTED = 8  # images of SIDE x SIDE latents to which the map is fitted
SIDE = 8
BLOCK = 2  # latents that are equal, in height and width: closer to those of images than independent ones


def previewer(pipeline: Pipeline, path: Path, steps: int) -> Callable[[np.ndarray], None]:
    """show(x0_hat), to be called after each of `steps` sampling steps, writes an image file at every EVERY-th and last.

    x0_hat is (N, H, W, C): images, or scaled latents, of which each becomes one colour. The file is replaced
    atomically, so that an image viewer can watch it.
    """
    latent_map, factor = None, 1
    if isinstance(pipeline, TextPipeline) and pipeline.vae.factor > 1:
        latent_map, factor = rgb_map(pipeline), pipeline.vae.factor
    taken = 0

    def show(x0_hat: np.ndarray) -> None:
        nonlocal taken
        taken += 1
        if taken % steps % EVERY == 0:
            x = x0_hat if latent_map is None else colours_of(x0_hat, latent_map)  # (N, H, W, 1 or 3)
            scale = max(factor, round(imaging.SHOWN / max(x.shape[1:3])))
            gap = 4 if len(x) > 1 else 0
            imaging.save_image(imaging.sheet(imaging.to_uint8(np.nan_to_num(x)), scale=scale, gap=gap), path)

    return show


def rgb_map(pipeline: TextPipeline) -> np.ndarray:
    """(W, b), float32 (C + 1, 3), with which z W + b is about the mean colour, in [-1, 1], that latents z decode to.

    The least-squares fit over the decoder's images of random latents, standard normal and equal in blocks:

        minimise over W, b the sum of (z_i W + b - c_i)^2 over all latents i

    where the colour c_i is the mean of decode(z) over the pixels that belong to latent i.
    """
    factor, C = pipeline.vae.factor, pipeline.vae.config.latent_channels
    shape = (FITTED, SIDE // BLOCK, SIDE // BLOCK, C)
    z = np.random.default_rng(0).standard_normal(shape, np.float32).repeat(BLOCK, 1).repeat(BLOCK, 2)  # (N, h, w, C)
    images = decode(pipeline, z)  # (N, h factor, w factor, 3)
    means = images.reshape(FITTED, SIDE, factor, SIDE, factor, -1).mean((2, 4))  # (N, h, w, 3)
    fitted, *_ = np.linalg.lstsq(_with_one(z).reshape(-1, C + 1), means.reshape(-1, means.shape[-1]))
    return fitted


def colours_of(z: np.ndarray, latent_map: np.ndarray) -> np.ndarray:
    """z W + b of latents (N, h, w, C), by the map of `rgb_map`: (N, h, w, 3)."""
    return _with_one(z) @ latent_map


def _with_one(z: np.ndarray) -> np.ndarray:
    """(..., C) -> (..., C + 1), the last channel one."""
    return np.concatenate([z, np.ones_like(z[..., :1])], axis=-1)
