"""What it takes to draw from a folder: a network that can be drawn from, noise, batches."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from minidiff.data.pictures import check_place
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


def check_places(out: Path, gif: Path | None, npz: Path | None) -> None:
    """Raises MinidiffError, before anything is drawn, for a place that cannot be written or is asked for twice."""
    check_place(out)
    if gif:
        check_place(gif, animated=True)
    if npz is not None:
        if npz.is_dir() or not npz.name:
            raise MinidiffError(f"{npz}: is a folder; give the name of a file")
        if not os.access(npz.parent, os.W_OK):
            raise MinidiffError(f"{npz}: its folder is not there, or cannot be written; choose another")
    places = [os.path.abspath(path) for path in (out, gif, npz) if path is not None]
    if len(set(places)) < len(places):
        raise MinidiffError(f"{npz or gif}: is to hold two things at once; give each file a name of its own")


def source(noise: str, seed: int) -> Any:
    """What the noise of a walk is drawn from: "numpy", or "torch", as a diffusers pipeline would draw it."""
    if noise not in ("numpy", "torch"):
        raise MinidiffError(f"--noise {noise}: choose numpy or torch")
    return torch_generator(seed) if noise == "torch" else np.random.default_rng(seed)


def batches(n: int, unet: UNet) -> list[tuple[int, int, int, int]]:
    """The shapes (N, H, W, C) of n pictures, BATCH at a time."""
    return [(min(BATCH, n - first), *unet.picture_shape) for first in range(0, n, BATCH)]
