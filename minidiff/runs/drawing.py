"""What it takes to draw from a folder: a network that can be drawn from, noise, batches."""

from pathlib import Path
from typing import Any

import numpy as np

from minidiff.diffusion.torch_generator import torch_generator
from minidiff.errors import MinidiffError
from minidiff.models.unet import UNet
from minidiff.runs.checkpoint import load_unet

BATCH = 64  # pictures at a time


def drawable(folder: Path, backend: str) -> UNet:
    """The network, if its pictures can be drawn without being told more."""
    unet = load_unet(folder, backend)
    height, width, channels = unet.picture_shape
    halvings = len(unet.config.block_out_channels) - 1
    if unet.config.num_class_embeds is not None:
        raise MinidiffError(f"{folder}: its network wants labels; draw from it in Python: md.sample(..., cond=labels)")
    if channels not in (1, 3):
        raise MinidiffError(f"{folder}: its pictures have {channels} channels; a sheet shows 1 or 3")
    if height % 2**halvings or width % 2**halvings:
        raise MinidiffError(f"{folder}: sample_size is {height}x{width}, and the network halves {halvings} times")
    return unet


def source(noise: str, seed: int) -> Any:
    """What the noise of a walk is drawn from: "numpy", or "torch", as a diffusers pipeline would draw it."""
    if noise not in ("numpy", "torch"):
        raise MinidiffError(f"--noise {noise}: choose numpy or torch")
    return torch_generator(seed) if noise == "torch" else np.random.default_rng(seed)


def batches(n: int, unet: UNet) -> list[tuple[int, int, int, int]]:
    """The shapes (N, H, W, C) of n pictures, BATCH at a time."""
    return [(min(BATCH, n - first), *unet.picture_shape) for first in range(0, n, BATCH)]
