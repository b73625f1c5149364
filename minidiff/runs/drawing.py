"""What it takes to draw from a folder: a network that can be drawn from, labels, noise, batches, places."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from minidiff.data.pictures import check_place, load, to_float
from minidiff.diffusion.guidance import guided
from minidiff.diffusion.levels import levels, most_steps, noise_to_signal
from minidiff.diffusion.preconditioning import as_model
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule, Schedule
from minidiff.diffusion.torch_generator import torch_generator
from minidiff.errors import MinidiffError
from minidiff.models.unet import UNet
from minidiff.runs.checkpoint import load_classes, load_sampler, load_schedule, load_unet
from minidiff.runs.files import replace_file
from minidiff.runs.terminal import errors

BATCH = 64  # pictures at a time
LOUD = 1000  # sigma from which Heun's first steps lead astray; cosine schedules begin beyond it
ENOUGH = 100  # steps that are short enough even there


def drawable(folder: Path, backend: str) -> UNet:
    """The network, if its pictures can be drawn."""
    unet = load_unet(folder, backend)
    height, width, channels = unet.picture_shape
    halvings = len(unet.config.block_out_channels) - 1
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
        if npz.is_dir():
            raise MinidiffError(f"{npz}: is a folder; give the name of a file")
        if npz.suffix.lower() != ".npz":
            raise MinidiffError(f"{npz}: is to be a NumPy archive; give a name that ends in .npz")
        if not os.access(npz.parent, os.W_OK):
            raise MinidiffError(f"{npz}: its folder is not there, or cannot be written; choose another")
    if gif and os.path.abspath(gif) == os.path.abspath(out):
        raise MinidiffError(f"{gif}: is to hold two things at once; give each file a name of its own")


def write_npz(path: Path, images: np.ndarray) -> None:
    """Write pictures (N, H, W, C) uint8 as arr_0 of a NumPy archive, as a whole or not at all."""

    def write(part: Path) -> None:
        with open(part, "wb") as file:  # a name would be given a suffix
            np.savez(file, images)

    replace_file(path, write)


def framed(picture: Path, unet: UNet) -> np.ndarray:
    """A picture as the network takes it: its centre, scaled to (1, H, W, C) float32 in [-1, 1]."""
    height, width, channels = unet.picture_shape
    pixels = load(picture, channels)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    cut = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))
    return to_float(cut.reshape(1, height, width, channels))


def mask_of(picture: Path, unet: UNet) -> np.ndarray:
    """Where a picture is white, (H, W, 1) bool, cut as `framed` cuts."""
    height, width, _ = unet.picture_shape
    image = Image.fromarray(load(picture, 1)[..., 0])
    return np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))[..., None] > 127


def source(noise: str, seed: int) -> Any:
    """What the noise of a walk is drawn from: "numpy", or "torch", as a diffusers pipeline would draw it."""
    if noise not in ("numpy", "torch"):
        raise MinidiffError(f"--noise {noise}: choose numpy or torch")
    return torch_generator(seed) if noise == "torch" else np.random.default_rng(seed)


def asked(folder: Path, unet: UNet, name: str | None, n: int) -> np.ndarray | None:
    """The labels (n,) of n pictures of one class, or, of "all" or no name, class after class: as many of each.

    None for a network without classes. A folder without classes.json has numbers for names.
    Raises MinidiffError for a class that it does not have.
    """
    if unet.config.num_class_embeds is None:
        if name is not None:
            raise MinidiffError(f"{folder}: was not trained by class; leave --class out")
        return None
    names = load_classes(folder) or tuple(map(str, range(unet.config.num_class_embeds)))
    if len(names) > unet.config.num_class_embeds:
        raise MinidiffError(f"{folder}: classes.json names more classes than its network has; copy both again")
    if name in (None, "all"):
        return np.repeat(np.arange(len(names)), max(1, n // len(names)))
    if name not in names:
        raise MinidiffError(f"{folder}: has no class {name!r}; choose from {', '.join(names)}, or all")
    return np.full(n, names.index(name))


def insisting(folder: Path, unet: UNet, schedule: AnySchedule, guidance: float) -> Callable[..., Any]:
    """The model that the network is, or the same under classifier-free guidance, from 0 to 100.

    Raises MinidiffError if it knows no classes, or if nothing tells that its last row stands for no label.
    """
    model = as_model(unet, schedule)
    if guidance == 1:
        return model
    if not 0 <= guidance <= 100:  # NaN is not
        raise MinidiffError(f"--guidance {guidance:g}: give a number from 0 to 100")
    if unet.config.num_class_embeds is None:
        raise MinidiffError(f"--guidance {guidance:g} is for networks that were trained by class; leave it out")
    if len(load_classes(folder)) != unet.config.num_class_embeds - 1:
        raise MinidiffError(f"{folder}: has no classes.json of all its classes but the last; leave --guidance out")
    return guided(model, unet.config.num_class_embeds - 1, guidance)


def walk_of(
    folder: Path,
    sampler: str | None,
    eta: float,
    spacing: str | None,
    karras: bool,
    steps: int | None,
    noise: str = "numpy",
) -> tuple[AnySchedule, Sampler, int]:
    """A folder's schedule, its sampler or the one of that name with what else is given, and how many steps it takes.

    With torch's noise the three are as_diffusers. Raises MinidiffError for what does not go together.
    """
    way = replace(load_sampler(folder, sampler), eta=eta, as_diffusers=noise == "torch")
    way = replace(way, spacing=way.spacing if spacing is None else spacing, karras=karras or way.karras)
    schedule = load_schedule(folder, way)
    steps = usual_steps(schedule, way) if steps is None else steps
    check_walk(schedule, way, steps)
    return schedule, way, steps


def check_walk(schedule: AnySchedule, way: Sampler, steps: int) -> None:
    """Raises MinidiffError for what does not go together; what goes, but badly, is said on stderr."""
    loudest = noise_to_signal(levels(schedule, steps, way).schedule)[-1]
    if way.name == "heun" and steps < ENOUGH and isinstance(schedule, Schedule) and loudest > LOUD and not way.karras:
        said = f"heun begins at {loudest:.0f} times as much noise as picture, and few steps lead it astray"
        errors.print(f"minidiff: {said}: take {ENOUGH} --steps, or minidiff sample's --karras")


def usual_steps(schedule: AnySchedule, sampler: Sampler) -> int:
    """How many steps a walk has if nobody says: 50; of ddpm, as many as there are."""
    longest = most_steps(schedule, sampler)
    return longest if sampler.name == "ddpm" else min(50, longest)


def batches(n: int, unet: UNet, labels: np.ndarray | None) -> list[tuple[tuple[int, int, int, int], Any]]:
    """The shapes (N, H, W, C) of n pictures, BATCH at a time, each with its labels (N,) if there are any."""
    return [
        ((min(BATCH, n - first), *unet.picture_shape), None if labels is None else labels[first : first + BATCH])
        for first in range(0, n, BATCH)
    ]
