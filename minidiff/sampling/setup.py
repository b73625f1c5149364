"""What it takes to draw from a folder: a network that can be drawn from, labels, noise, batches, places."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from minidiff.data.imaging import check_image_output, load_image, to_float
from minidiff.diffusion.guidance import guided
from minidiff.diffusion.noise_levels import max_steps, noise_levels, sigmas_of
from minidiff.diffusion.preconditioning import as_model
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule, Schedule
from minidiff.diffusion.torch_generator import torch_generator
from minidiff.errors import MinidiffError
from minidiff.files import check_file, check_new_folder, followed, replace_file
from minidiff.formats.folders import check_kind
from minidiff.formats.networks import load_classes, load_sampler, load_schedule, load_unet
from minidiff.formats.stable_diffusion import Pipeline, load_pipeline
from minidiff.models.unet import UNet
from minidiff.terminal import stderr_console
from minidiff.training.state import open_chosen
from minidiff.training.text_run import TextRun
from minidiff.training.unet_run import UNetRun

BATCH = 64  # pictures at a time
LARGE_SIGMA = 1000  # sigma from which Heun's first steps lead astray; cosine schedules begin beyond it
ENOUGH = 100  # steps that are short enough even there


Choice = str | int | None  # of a run's weights, as of `state.open_chosen`; None: those that the folder exports


def chosen(raw: bool, best: bool, step: int | None) -> Choice:
    """The choice that options make. Raises MinidiffError if there are two."""
    given = {"--raw": raw or None, "--best": best or None, "--step": step}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise MinidiffError(f"{' and '.join(names)} choose different weights: give one of them")
    return "raw" if raw else "best" if best else step


def load_image_unet(folder: Path, backend: str, choice: Choice = None) -> UNet:
    """The network, if its images can be sampled."""
    check_kind(folder, "unet")
    unet = load_unet(folder, backend) if choice is None else open_chosen(folder, choice, UNetRun).unet.to(backend)
    height, width, channels = unet.image_shape
    downsamples = len(unet.config.block_out_channels) - 1
    if channels not in (1, 3):
        raise MinidiffError(f"{folder}: its pictures have {channels} channels; a sheet shows 1 or 3")
    if height % 2**downsamples or width % 2**downsamples:
        raise MinidiffError(f"{folder}: sample_size is {height}x{width}, and the network halves {downsamples} times")
    return unet


def open_texts(folder: Path, backend: str, choice: Choice = None) -> Pipeline:
    """All that samples images of prompts."""
    check_kind(folder, "text")
    return (
        load_pipeline(folder, backend) if choice is None else open_chosen(folder, choice, TextRun).pipeline.to(backend)
    )


def check_outputs(out: Path | None, gif: Path | None, npz: Path | None, folder: Path | None) -> None:
    """Raises MinidiffError, before anything is drawn, for a place that cannot be written or is asked for twice."""
    if out:
        check_image_output(out)
    if gif:
        check_image_output(gif, animated=True)
    if npz:
        check_file(npz)
        if npz.suffix.lower() != ".npz":
            raise MinidiffError(f"{npz}: is to be a NumPy archive; give a name that ends in .npz")
    if folder:
        check_new_folder(folder)
        for path in (out, gif, npz):
            if path and followed(path).is_relative_to(followed(folder)):
                raise MinidiffError(f"{path}: lies in {folder}, which is to hold single images; choose another place")
    for one, other in combinations(filter(None, (out, gif, npz)), 2):
        if followed(one) == followed(other):
            raise MinidiffError(f"{other}: is to hold two things at once; give each file a name of its own")


def write_npz(path: Path, images: np.ndarray) -> None:
    """Write pictures (N, H, W, C) uint8 as arr_0 of a NumPy archive, as a whole or not at all."""

    def write(part: Path) -> None:
        with open(part, "wb") as file:  # a name would be given a suffix
            np.savez(file, images)

    replace_file(followed(path), write)


def load_network_input(picture: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """An image as a network of images (H, W, C) takes it: its centre, scaled to (1, H, W, C) float32 in [-1, 1]."""
    height, width, channels = shape
    pixels = load_image(picture, channels)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    cut = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))
    return to_float(cut.reshape(1, height, width, channels))


def load_mask(picture: Path, size: tuple[int, int], factor: int = 1) -> np.ndarray:
    """Where an image is white, (H, W, 1) bool, cut as `framed` cuts; squares of side `factor` are of one value.

    Raises MinidiffError if that is nowhere.
    """
    height, width = size
    image, small = Image.fromarray(load_image(picture, 1)[..., 0]), (width // factor, height // factor)
    mask = np.asarray(ImageOps.fit(image, small, Image.Resampling.LANCZOS))[..., None] > 127
    if not mask.any():
        raise MinidiffError(f"{picture}: the mask is black, with nothing to fill; make white what is to be sampled")
    return mask.repeat(factor, 0).repeat(factor, 1)


def noise_source(noise: str, seed: int) -> Any:
    """What the noise of a walk is drawn from: "numpy", or "torch", as a diffusers pipeline would draw it."""
    if noise not in ("numpy", "torch"):
        raise MinidiffError(f"--noise {noise}: choose numpy or torch")
    return torch_generator(seed) if noise == "torch" else np.random.default_rng(seed)


def class_labels(folder: Path, unet: UNet, name: str | None, n: int) -> np.ndarray | None:
    """The labels (n,) of n images of one class, or, of "all" or no name, class after class, as evenly as n allows.

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
        return np.arange(n) * len(names) // n
    if name not in names:
        raise MinidiffError(f"{folder}: has no class {name!r}; choose from {', '.join(names)}, or all")
    return np.full(n, names.index(name))


def guided_model(folder: Path, unet: UNet, schedule: AnySchedule, guidance: float) -> Callable[..., Any]:
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


def sampling_settings(
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
    steps = default_steps(schedule, way) if steps is None else steps
    check_settings(schedule, way, steps)
    return schedule, way, steps


def check_settings(schedule: AnySchedule, way: Sampler, steps: int) -> None:
    """Raises MinidiffError for what does not go together; what goes, but badly, is said on stderr."""
    loudest = sigmas_of(noise_levels(schedule, steps, way).schedule)[-1]
    if (
        way.name == "heun"
        and steps < ENOUGH
        and isinstance(schedule, Schedule)
        and loudest > LARGE_SIGMA
        and not way.karras
    ):
        said = f"heun begins at {loudest:.0f} times as much noise as picture, and few steps lead it astray"
        stderr_console.print(f"minidiff: {said}: take {ENOUGH} --steps, or minidiff sample's --karras")


def default_steps(schedule: AnySchedule, sampler: Sampler) -> int:
    """How many steps a walk has if nobody says: 50; of ddpm, as many as there are."""
    longest = max_steps(schedule, sampler)
    return longest if sampler.name == "ddpm" else min(50, longest)


def rows_by_class(labels: np.ndarray | None) -> dict[str, Any]:
    """The `columns` and `cells` of a sheet on which each class has a row of its own, of up to 16 images.

    Nothing for labels of a single class, or none.
    """
    _, counts = np.unique([] if labels is None else labels, return_counts=True)
    if len(counts) < 2:
        return {}
    columns = min(counts.max(), 16)
    begins = np.arange(len(counts)) * columns if columns == counts.max() else np.cumsum(counts) - counts
    cells = np.concatenate([begin + np.arange(n) for begin, n in zip(begins, counts, strict=True)])
    return {"columns": int(columns), "cells": cells.tolist()}


def batches(n: int, unet: UNet, labels: np.ndarray | None) -> list[tuple[tuple[int, int, int, int], Any]]:
    """The shapes (N, H, W, C) of n pictures, BATCH at a time, each with its labels (N,) if there are any."""
    return [
        ((min(BATCH, n - first), *unet.image_shape), None if labels is None else labels[first : first + BATCH])
        for first in range(0, n, BATCH)
    ]
