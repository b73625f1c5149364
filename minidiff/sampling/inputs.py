"""Inputs of sampling: images and masks as network input, class labels, batches, the source of noise."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from minidiff.data.imaging import load_image, to_float
from minidiff.diffusion.torch_generator import torch_generator
from minidiff.errors import MinidiffError
from minidiff.formats.networks import load_classes
from minidiff.models.mlp import MLP
from minidiff.models.unet import UNet

BATCH_SIZE = 64  # images that are sampled together


def load_network_input(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """An image file as network input (1, H, W, C), float32 in [-1, 1]: its centre, scaled to `shape` (H, W, C)."""
    height, width, channels = shape
    pixels = load_image(path, channels)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    centre = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))
    return to_float(centre.reshape(1, height, width, channels))


def load_mask(path: Path, size: tuple[int, int], factor: int = 1) -> np.ndarray:
    """A mask file as bool (H, W, 1), True where it is white; cropped and scaled as `load_network_input` does.

    Constant in blocks of factor x factor pixels, one block a latent. Raises MinidiffError if nothing is white.
    """
    height, width = size
    image, small = Image.fromarray(load_image(path, 1)[..., 0]), (width // factor, height // factor)
    mask = np.asarray(ImageOps.fit(image, small, Image.Resampling.LANCZOS))[..., None] > 127
    if not mask.any():
        raise MinidiffError(f"{path}: the mask is black, with nothing to fill; make white what is to be sampled")
    return mask.repeat(factor, 0).repeat(factor, 1)


def noise_source(noise: str, seed: int) -> Any:
    """The random generator of a seed: "numpy" for NumPy's default_rng, "torch" for the numbers of torch.Generator."""
    if noise not in ("numpy", "torch"):
        raise MinidiffError(f"--noise {noise}: choose numpy or torch")
    return torch_generator(seed) if noise == "torch" else np.random.default_rng(seed)


def class_labels(folder: Path, unet: UNet | MLP, name: str | None, n: int) -> np.ndarray | None:
    """Labels (n,) of one class; for "all" or None of every class in order, as evenly as n allows.

    None for a network without classes. Without classes.json the class names are the indices.
    Raises MinidiffError if there is no class of that name.
    """
    if unet.config.num_class_embeds is None:
        if name is not None:
            raise MinidiffError(f"{folder}: was not trained by class; leave --class out")
        return None
    names = load_classes(folder) or tuple(map(str, range(unet.config.num_class_embeds)))
    if len(names) > unet.config.num_class_embeds:
        raise MinidiffError(f"{folder}: classes.json names more classes than its network has; copy both again")
    if name in (None, "all"):
        return np.arange(n) * len(names) // n
    if name not in names:
        raise MinidiffError(f"{folder}: has no class {name!r}; choose from {', '.join(names)}, or all")
    return np.full(n, names.index(name))


def batches(n: int, unet: UNet, labels: np.ndarray | None) -> list[tuple[tuple[int, int, int, int], Any]]:
    """Shape (N, H, W, C) and labels (N,), or None, of each batch of up to BATCH_SIZE of n images."""
    return [
        (
            (min(BATCH_SIZE, n - first), *unet.image_shape),
            None if labels is None else labels[first : first + BATCH_SIZE],
        )
        for first in range(0, n, BATCH_SIZE)
    ]
