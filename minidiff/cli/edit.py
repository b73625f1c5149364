"""The commands that edit images: image-to-image, inpainting and interpolation."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from minidiff import machine
from minidiff.cli import options
from minidiff.cli.sample import PROMPT_GUIDANCE, Prompts, check_no_prompt, check_prompts, sample_one_by_one
from minidiff.data import imaging
from minidiff.diffusion import editing
from minidiff.diffusion.model import Model
from minidiff.diffusion.reverse import Tick, Trajectory, last_x_t, sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule
from minidiff.errors import MinidiffError
from minidiff.formats import networks
from minidiff.formats.stable_diffusion import Pipeline
from minidiff.models.unet import UNet
from minidiff.sampling import inputs, outputs, setup, text_to_image
from minidiff.terminal import announce_compiling, console, with_progress_bar


def redraw(
    run: options.ModelFolder,
    image: options.InputImage,
    out: options.Out = Path("sheet.png"),
    strength: Annotated[float, typer.Option(help="Noise strength: 0 keeps the image, 1 replaces it.")] = 0.5,
    n: options.NumImages = 8,
    prompt: options.Prompt = None,
    negative_prompt: options.NegativePrompt = None,
    name: options.ClassName = None,
    guidance: options.GuidanceScale = None,
    steps: options.Steps = 50,
    seed: options.Seed = 0,
    backend: options.Backend = "numba",
    threads: options.Threads = None,
) -> None:
    """Image-to-image (SDEdit): add noise to an image up to --strength and denoise it; the original comes first.

    --prompt is for a run of train --text or a Stable Diffusion folder; the guidance scale is then 7.5 by default, and
    1 without a prompt.
    """
    imaging.check_image_output(out, image)
    editing.check_strength(strength)
    rng = np.random.default_rng(seed)
    if prompt is not None:
        given = _prompts(prompt, negative_prompt, guidance, name)
        parts, x0, sampler = _open_pipeline(run, image, given, backend, threads)

        def sample_one(prompt: str, tick: Tick) -> np.ndarray:
            return text_to_image.image_to_image(
                parts, [prompt], x0, strength, given.negative, given.guidance, steps, rng, sampler, tick
            )

        images = sample_one_by_one([prompt] * n, max(int(steps * strength), 1), sample_one)
        _write_sheet(out, np.concatenate([imaging.to_uint8(x0), images]))
        return
    check_no_prompt(run, {"negative-prompt": negative_prompt})
    unet, model, schedule, labels = _open_network(run, n, name, guidance, backend, threads)
    x0 = inputs.load_network_input(image, unet.image_shape).repeat(n, 0)
    trajectory = editing.redraw(model, schedule, x0, strength, rng, steps, cond=labels)
    images = _sampled(trajectory, round(strength * steps))
    _write_sheet(out, outputs.finished(np.concatenate([x0[:1], images])))


def fill(
    run: options.ModelFolder,
    image: options.InputImage,
    mask: Annotated[Path, typer.Argument(help="Mask image, white where the image is to be inpainted.")],
    out: options.Out = Path("sheet.png"),
    n: options.NumImages = 8,
    prompt: options.Prompt = None,
    negative_prompt: options.NegativePrompt = None,
    name: options.ClassName = None,
    guidance: options.GuidanceScale = None,
    steps: options.Steps = 50,
    seed: options.Seed = 0,
    backend: options.Backend = "numba",
    threads: options.Threads = None,
) -> None:
    """Inpainting: sample the masked part of an image, given the rest; the original comes first.

    --prompt is for a run of train --text or a Stable Diffusion folder; the guidance scale is then 7.5 by default, and
    1 without a prompt.
    """
    imaging.check_image_output(out, image, mask)
    rng = np.random.default_rng(seed)
    if prompt is not None:
        given = _prompts(prompt, negative_prompt, guidance, name)
        parts, x0, sampler = _open_pipeline(run, image, given, backend, threads)
        masked = inputs.load_mask(mask, x0.shape[1:3], parts.vae.factor)

        def sample_one(prompt: str, tick: Tick) -> np.ndarray:
            return text_to_image.inpaint(
                parts, [prompt], x0, masked, given.negative, given.guidance, steps, rng, sampler, tick
            )

        images = sample_one_by_one([prompt] * n, steps, sample_one)
        _write_sheet(out, np.concatenate([imaging.to_uint8(x0), images]))
        return
    check_no_prompt(run, {"negative-prompt": negative_prompt})
    unet, model, schedule, labels = _open_network(run, n, name, guidance, backend, threads)
    x0 = inputs.load_network_input(image, unet.image_shape).repeat(n, 0)
    model = editing.inpainting(model, schedule, x0, inputs.load_mask(mask, x0.shape[1:3]))
    images = _sampled(sample(model, schedule, x0.shape, rng, steps, cond=labels), steps)
    _write_sheet(out, outputs.finished(np.concatenate([x0[:1], images])))


def between(
    run: options.ModelFolder,
    out: options.Out = Path("sheet.png"),
    n: options.NumImages = 8,
    name: options.ClassName = None,
    guidance: options.Guidance = 1.0,
    steps: options.Steps = 50,
    seed: options.Seed = 0,
    backend: options.Backend = "numba",
    threads: options.Threads = None,
) -> None:
    """Interpolate between two samples: spherical interpolation (slerp) of their initial noise, in one row."""
    imaging.check_image_output(out)
    unet, model, schedule, labels = _open_network(run, n, name, guidance, backend, threads)
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, 1, *unet.image_shape), dtype=np.float32)
    x_T = np.concatenate([editing.slerp(a, b, weight) for weight in np.linspace(0, 1, n)])  # (n, H, W, C)
    images = _sampled(sample(model, schedule, x_T.shape, rng, steps, cond=labels, x_T=x_T), steps)
    _write_sheet(out, outputs.finished(images), columns=n)


def _open_network(
    run: Path, n: int, name: str | None, guidance: float | None, backend: str, threads: int | None
) -> tuple[UNet, Model, AnySchedule, np.ndarray | None]:
    """The network, the guided model, its schedule, and labels (n,), or None for an unconditional network."""
    machine.use_threads(threads, backend)
    unet = setup.load_image_unet(run, backend)
    labels = inputs.class_labels(run, unet, name, n)
    announce_compiling(backend)
    schedule = networks.load_schedule(run)
    return unet, setup.guided_model(run, unet, schedule, 1.0 if guidance is None else guidance), schedule, labels


def _prompts(prompt: str, negative_prompt: str | None, guidance: float | None, name: str | None) -> Prompts:
    """The prompt and what goes with it. Raises MinidiffError if a class is given too."""
    if name is not None:
        raise MinidiffError("--class does not go with a prompt: leave it out")
    return Prompts([prompt], negative_prompt or "", PROMPT_GUIDANCE if guidance is None else guidance)


def _open_pipeline(
    run: Path, image: Path, prompts: Prompts, backend: str, threads: int | None
) -> tuple[Pipeline, np.ndarray, Sampler]:
    """A text-to-image pipeline, the image (1, H, W, C) at its native size, and the DDIM sampler."""
    machine.use_threads(threads, backend)
    parts = setup.open_texts(run, backend)
    x0 = inputs.load_network_input(image, (*text_to_image.native_size(parts), parts.vae.config.in_channels))
    check_prompts(parts, prompts, backend)
    return parts, x0, networks.load_sampler(run, "ddim")


def _sampled(trajectory: Trajectory, steps: int) -> np.ndarray:
    """The sample (N, H, W, C) of a trajectory, with a progress bar."""
    return with_progress_bar("sampling", max(steps, 1), lambda tick: last_x_t(trajectory, tick))


def _write_sheet(out: Path, images: np.ndarray, columns: int | None = None) -> None:
    """Write images (N, H, W, C) uint8 as one grid."""
    imaging.save_image(imaging.sheet(images, columns), out)
    console.print(f"Wrote {out}")
