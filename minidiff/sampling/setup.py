"""Networks and pipelines opened for sampling, with chosen weights and classifier-free guidance."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minidiff.diffusion.guidance import guided
from minidiff.diffusion.preconditioning import as_model
from minidiff.diffusion.schedule import AnySchedule
from minidiff.errors import MinidiffError
from minidiff.formats.folders import check_kind
from minidiff.formats.networks import load_classes, load_unet
from minidiff.formats.run_networks import load_run_pipeline, load_run_unet
from minidiff.formats.stable_diffusion import Pipeline, load_pipeline
from minidiff.models.mlp import MLP
from minidiff.models.unet import UNet

Choice = str | int | None  # of a run's weights, as of `load_run_unet`; None: those that the folder exports


def chosen_weights(raw: bool, best: bool, step: int | None) -> Choice:
    """The weights that --raw, --best or --step choose; None without any. Raises MinidiffError if several are given."""
    given = {"--raw": raw or None, "--best": best or None, "--step": step}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise MinidiffError(f"{' and '.join(names)} choose different weights: give one of them")
    return "raw" if raw else "best" if best else step


def load_image_unet(folder: Path, backend: str, choice: Choice = None) -> UNet:
    """The network, if its images can be sampled."""
    check_kind(folder, "unet")
    unet = load_unet(folder, backend) if choice is None else load_run_unet(folder, choice, backend)
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
    return load_pipeline(folder, backend) if choice is None else load_run_pipeline(folder, choice, backend)


def guided_model(folder: Path, unet: UNet | MLP, schedule: AnySchedule, guidance: float) -> Callable[..., Any]:
    """The network as a model (x_t, t, cond) -> prediction, with classifier-free guidance unless its scale is 1.

    Raises MinidiffError if the scale is not from 0 to 100, if the network is not class-conditional, or if classes.json
    does not leave the last class embedding to the null class.
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
