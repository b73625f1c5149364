"""The commands that edit images: image-to-image, inpainting and interpolation."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from minidiff import machine
from minidiff.cli import options
from minidiff.cli.sample import (
    PROMPT_GUIDANCE,
    Prompts,
    check_prompt_options,
    check_prompts,
    open_for,
    sample_one_by_one,
)
from minidiff.data import imaging
from minidiff.diffusion import editing
from minidiff.diffusion.model import Model
from minidiff.diffusion.reverse import Tick, Trajectory, last_x_t, sample
from minidiff.errors import MinidiffError
from minidiff.formats.pipeline import Pipeline, TextPipeline
from minidiff.sampling import inputs, outputs, text_to_image
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.settings import guided_model
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
    taken = editing.steps_taken(strength, steps)
    rng = np.random.default_rng(seed)
    if prompt is not None:
        given = _prompts(prompt, negative_prompt, guidance, name)
        pipeline, x0 = _open_for_prompt(run, image, given, backend, threads)

        def sample_one(prompt: str, tick: Tick) -> np.ndarray:
            return text_to_image.image_to_image(
                pipeline, [prompt], x0, strength, given.negative, given.guidance, steps, rng, tick=tick
            )

        images = sample_one_by_one([prompt] * n, max(taken, 1), sample_one)
        _write_sheet(out, np.concatenate([imaging.to_uint8(x0), images]))
        return
    check_prompt_options(run, {"negative-prompt": negative_prompt})
    machine.use_threads(threads, backend)
    pipeline = open_for("unet", run, backend, sampler="ddim")
    model, labels = _class_model(pipeline, n, name, guidance)
    x0 = inputs.load_network_input(image, pipeline.image_shape).repeat(n, 0)
    trajectory = editing.redraw(model, pipeline.schedule, x0, strength, rng, steps, cond=labels)
    images = _sampled(trajectory, taken)
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
        pipeline, x0 = _open_for_prompt(run, image, given, backend, threads)
        masked = inputs.load_mask(mask, x0.shape[1:3], pipeline.vae.factor)

        def sample_one(prompt: str, tick: Tick) -> np.ndarray:
            return text_to_image.inpaint(
                pipeline, [prompt], x0, masked, given.negative, given.guidance, steps, rng, tick=tick
            )

        images = sample_one_by_one([prompt] * n, steps, sample_one)
        _write_sheet(out, np.concatenate([imaging.to_uint8(x0), images]))
        return
    check_prompt_options(run, {"negative-prompt": negative_prompt})
    machine.use_threads(threads, backend)
    pipeline = open_for("unet", run, backend, sampler="ddim")
    model, labels = _class_model(pipeline, n, name, guidance)
    x0 = inputs.load_network_input(image, pipeline.image_shape).repeat(n, 0)
    model = editing.inpainting(model, pipeline.schedule, x0, inputs.load_mask(mask, x0.shape[1:3]))
    images = _sampled(sample(model, pipeline.schedule, x0.shape, rng, steps, cond=labels), steps)
    _write_sheet(out, outputs.finished(np.concatenate([x0[:1], images])))


def between(
    run: options.ModelFolder,
    out: options.Out = Path("sheet.png"),
    n: options.NumImages = 8,
    name: options.RowClass = None,
    guidance: options.Guidance = 1.0,
    steps: options.Steps = 50,
    seed: options.Seed = 0,
    backend: options.Backend = "numba",
    threads: options.Threads = None,
) -> None:
    """Interpolate between two samples: spherical interpolation (slerp) of their initial noise, in one row."""
    imaging.check_image_output(out)
    machine.use_threads(threads, backend)
    pipeline = open_pipeline(run, backend, sampler="ddim", kind="unet")
    model, labels = _class_model(pipeline, n, name, guidance)
    if name is None and labels is not None:
        labels = np.zeros_like(labels)  # of one class, so that only the noise changes along the row
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, 1, *pipeline.image_shape), dtype=np.float32)
    x_T = np.concatenate([editing.slerp(a, b, weight) for weight in np.linspace(0, 1, n)])  # (n, H, W, C)
    images = _sampled(sample(model, pipeline.schedule, x_T.shape, rng, steps, cond=labels, x_T=x_T), steps)
    _write_sheet(out, outputs.finished(images), columns=n)


def _class_model(
    pipeline: Pipeline, n: int, name: str | None, guidance: float | None
) -> tuple[Model, np.ndarray | None]:
    """The guided model of a pipeline without prompts, and labels (n,), or None for an unconditional network."""
    labels = inputs.class_labels(pipeline, name, n)
    announce_compiling(pipeline.unet.backend.name)
    return guided_model(pipeline, 1.0 if guidance is None else guidance), labels


def _prompts(prompt: str, negative_prompt: str | None, guidance: float | None, name: str | None) -> Prompts:
    """The prompt and what goes with it. Raises MinidiffError if a class is given too."""
    if name is not None:
        raise MinidiffError("--class does not go with a prompt: leave it out")
    return Prompts([prompt], negative_prompt or "", PROMPT_GUIDANCE if guidance is None else guidance)


def _open_for_prompt(
    run: Path, image: Path, prompts: Prompts, backend: str, threads: int | None
) -> tuple[TextPipeline, np.ndarray]:
    """A pipeline with prompts, its sampler DDIM, and the image (1, H, W, C) at the size that it was trained on."""
    machine.use_threads(threads, backend)
    pipeline = text_to_image.with_prompts(open_for("text", run, backend, sampler="ddim"))
    x0 = inputs.load_network_input(image, pipeline.image_shape)
    check_prompts(pipeline, prompts)
    return pipeline, x0


def _sampled(trajectory: Trajectory, steps: int) -> np.ndarray:
    """The sample (N, H, W, C) of a trajectory, with a progress bar."""
    return with_progress_bar("sampling", max(steps, 1), lambda tick: last_x_t(trajectory, tick))


def _write_sheet(out: Path, images: np.ndarray, columns: int | None = None) -> None:
    """Write images (N, H, W, C) uint8 as one grid."""
    imaging.save_image(imaging.sheet(images, columns), out)
    console.print(f"Wrote {out}")
