"""The commands that edit images: image-to-image, inpainting, inversion and interpolation."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from minidiff import machine
from minidiff.cli import options
from minidiff.cli.sampling.prompts import (
    Prompts,
    check_prompt_options,
    check_prompts,
    one_prompt,
    open_for,
    sample_one_by_one,
)
from minidiff.data import imaging
from minidiff.data.captioned_sheet import captioned_sheet
from minidiff.diffusion import editing
from minidiff.diffusion.model import Model, as_model
from minidiff.diffusion.reverse import Tick, Trajectory, last_x_t, sample
from minidiff.diffusion.sampler import Sampler
from minidiff.errors import MinidiffError
from minidiff.formats.pipeline import Pipeline, TextPipeline
from minidiff.sampling import inputs, outputs, text_to_image
from minidiff.sampling.adapted import adapted
from minidiff.sampling.dry_run import compile_for_sampling
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.settings import guided_model
from minidiff.terminal import console, with_progress_bar

AMPLIFIED = 10  # factor by which the sheet of `invert` shows the reconstruction's difference


def redraw(
    run: options.ModelFolder,
    image: options.InputImage,
    out: options.Out = Path("sheet.png"),
    strength: Annotated[float, typer.Option(help="Noise strength: 0 keeps the image, 1 replaces it.")] = 0.5,
    n: options.NumImages = 8,
    prompt: options.Prompt = None,
    negative_prompt: options.NegativePrompt = None,
    lora: options.LoRAs = None,
    embedding: options.Embeddings = None,
    name: options.ClassName = None,
    guidance: options.GuidanceScale = None,
    steps: options.Steps = 50,
    seed: options.Seed = 0,
    backend: options.Backend = "numba",
    precision: options.Precision = "float32",
    threads: options.Threads = None,
) -> None:
    """Image-to-image (SDEdit): add noise to an image up to --strength and denoise it; the original comes first.

    --prompt is for a run of train --text or a Stable Diffusion folder; the guidance scale is then 7.5 by default, and
    1 without a prompt.
    """
    imaging.check_image_output(out, image)
    backend = options.with_precision(backend, precision)
    taken = editing.steps_taken(strength, steps)
    rng = np.random.default_rng(seed)
    if prompt is not None:
        given = one_prompt(prompt, negative_prompt, guidance, name, lora, embedding)
        with _opened_for_prompt(run, image, given, backend, threads) as (pipeline, x0):

            def sample_one(prompt: str, tick: Tick) -> np.ndarray:
                return text_to_image.image_to_image(
                    pipeline, [prompt], x0, strength, given.negative, given.guidance, steps, rng, tick=tick
                )

            images = sample_one_by_one([prompt] * n, max(taken, 1), sample_one)
        _write_sheet(out, np.concatenate([imaging.to_uint8(x0), images]))
        return
    check_prompt_options(run, {"negative-prompt": negative_prompt, "lora": lora, "embedding": embedding})
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
    lora: options.LoRAs = None,
    embedding: options.Embeddings = None,
    name: options.ClassName = None,
    guidance: options.GuidanceScale = None,
    steps: options.Steps = 50,
    resample: Annotated[int, typer.Option(help="RePaint: take every step this often; 1: do not.", min=1, max=1000)] = 1,
    seed: options.Seed = 0,
    backend: options.Backend = "numba",
    precision: options.Precision = "float32",
    threads: options.Threads = None,
) -> None:
    """Inpainting: sample the masked part of an image, given the rest; the original comes first.

    --prompt is for a run of train --text or a Stable Diffusion folder; the guidance scale is then 7.5 by default, and
    1 without a prompt. --resample 10 fits the filled part better to the rest, in ten times the evaluations.
    """
    imaging.check_image_output(out, image, mask)
    if prompt is not None and resample > 1:
        raise MinidiffError("--resample does not go with a prompt: leave it out")
    backend = options.with_precision(backend, precision)
    rng = np.random.default_rng(seed)
    if prompt is not None:
        given = one_prompt(prompt, negative_prompt, guidance, name, lora, embedding)
        with _opened_for_prompt(run, image, given, backend, threads) as (pipeline, x0):
            masked = inputs.load_mask(mask, x0.shape[1:3], pipeline.vae.factor)

            def sample_one(prompt: str, tick: Tick) -> np.ndarray:
                return text_to_image.inpaint(
                    pipeline, [prompt], x0, masked, given.negative, given.guidance, steps, rng, tick=tick
                )

            images = sample_one_by_one([prompt] * n, steps, sample_one)
        _write_sheet(out, np.concatenate([imaging.to_uint8(x0), images]))
        return
    check_prompt_options(run, {"negative-prompt": negative_prompt, "lora": lora, "embedding": embedding})
    machine.use_threads(threads, backend)
    pipeline = open_for("unet", run, backend, sampler="ddim")
    model, labels = _class_model(pipeline, n, name, guidance)
    x0 = inputs.load_network_input(image, pipeline.image_shape).repeat(n, 0)
    unknown = inputs.load_mask(mask, x0.shape[1:3])
    if resample > 1:
        trajectory = editing.repaint(model, pipeline.schedule, x0, unknown, rng, steps, labels, resample)
    else:
        model = editing.inpainting(model, pipeline.schedule, x0, unknown)
        trajectory = sample(model, pipeline.schedule, x0.shape, rng, steps, cond=labels)
    images = _sampled(trajectory, steps)
    _write_sheet(out, outputs.finished(np.concatenate([x0[:1], images])))


def invert(
    run: options.ModelFolder,
    image: options.InputImage,
    out: options.Out = Path("sheet.png"),
    npz: Annotated[
        Path | None, typer.Option(help="Also write the noise to this .npz file, as arr_0.", **options.PLACE)
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--class", callback=options.valid_text, help="The image's class, for a network trained by class."),
    ] = None,
    to_class: Annotated[
        str | None,
        typer.Option(callback=options.valid_text, help="Also sample an image of this class from the same noise."),
    ] = None,
    steps: options.Steps = 50,
    fixed_point: Annotated[
        int, typer.Option(help="Fixed-point iterations of an inverse step; 0: plain DDIM inversion.", min=0, max=1000)
    ] = 5,
    backend: options.Backend = "numba",
    threads: options.Threads = None,
) -> None:
    """DDIM inversion: find the noise from which an image is sampled, and sample the image from it again.

    The sheet shows the image, the noise, the reconstruction and ten times their difference. The round-trip error is
    the mean absolute difference, in units of 1/255.
    """
    outputs.check_outputs(out, None, npz, None, image)
    machine.use_threads(threads, backend)
    pipeline = open_pipeline(run, backend, sampler="ddim", kind="unet")
    label = _one_label(pipeline, name)
    to_label = None if to_class is None else _one_label(pipeline, to_class)
    x0 = inputs.load_network_input(image, pipeline.image_shape)
    compile_for_sampling(pipeline)
    counts = sorted({0, fixed_point})

    def sample_all(tick: Tick) -> list[np.ndarray]:
        noises = [_inverted(pipeline, x0, steps, label, count, tick) for count in counts]
        last = [] if to_class is None else [_from_noise(pipeline, noises[-1], steps, to_label, tick)]
        return [noises[-1], *(_from_noise(pipeline, x_T, steps, label, tick) for x_T in noises), *last]

    trips = 2 * len(counts) + (to_class is not None)
    x_T, *sampled = with_progress_bar("inverting", trips * steps, sample_all)
    errors = [127.5 * float(np.abs(x_0 - x0).mean()) for x_0 in sampled[: len(counts)]]
    x_0, *edited = sampled[len(counts) - 1 :]
    images = outputs.finished(np.concatenate([x0, x_T, x_0, AMPLIFIED * (x_0 - x0), *edited]))
    captions = ["original", "noise", "reconstruction", f"difference x {AMPLIFIED}", *filter(None, [to_class])]
    if npz:
        outputs.write_npz(npz, x_T)
    imaging.save_image(captioned_sheet(images, captions, columns=len(images)), out)
    found = [f"{error:.3g} with {count}" for error, count in zip(errors, counts, strict=True)]
    console.print(f"Round-trip error in units of 1/255, by fixed-point iterations: {', '.join(found)}")
    console.print("Wrote " + " and ".join(str(path) for path in (out, npz) if path))


def between(
    run: options.ModelFolder,
    out: options.Out = Path("sheet.png"),
    begin: Annotated[Path | None, typer.Option("--from", help="Image to begin at, with --to.")] = None,
    end: Annotated[Path | None, typer.Option("--to", help="Image to end at.")] = None,
    n: options.NumImages = 8,
    name: options.RowClass = None,
    guidance: options.Guidance = 1.0,
    steps: options.Steps = 50,
    seed: options.Seed = 0,
    backend: options.Backend = "numba",
    threads: options.Threads = None,
) -> None:
    """Interpolate between two samples: spherical interpolation (slerp) of their initial noise, in one row.

    With --from and --to, between the noises of two images, by DDIM inversion.
    """
    images = [path for path in (begin, end) if path]
    if len(images) == 1:
        raise MinidiffError("--from and --to go together: give both images, or neither")
    imaging.check_image_output(out, *images)
    machine.use_threads(threads, backend)
    pipeline = open_pipeline(run, backend, sampler="ddim", kind="unet")
    model, labels = _class_model(pipeline, n, name, guidance)
    if name is None and labels is not None:
        labels = np.zeros_like(labels)  # of one class, so that only the noise changes along the row
    rng = np.random.default_rng(seed)
    if images:
        x0 = np.concatenate([inputs.load_network_input(path, pipeline.image_shape) for path in images])
        ends = None if labels is None else labels[[0, -1]]
        inverted = _sampled(editing.invert(model, pipeline.schedule, x0, steps, ends), steps, "inverting")
        a, b, sampler = inverted[:1], inverted[1:], editing.INVERTIBLE
    else:
        a, b = rng.standard_normal((2, 1, *pipeline.image_shape), dtype=np.float32)
        sampler = Sampler("ddim")
    x_T = np.concatenate([editing.slerp(a, b, weight) for weight in np.linspace(0, 1, n)])  # (n, H, W, C)
    trajectory = sample(model, pipeline.schedule, x_T.shape, rng, steps, sampler, labels, x_T=x_T)
    _write_sheet(out, outputs.finished(_sampled(trajectory, steps)), columns=n)


def _class_model(
    pipeline: Pipeline, n: int, name: str | None, guidance: float | None
) -> tuple[Model, np.ndarray | None]:
    """The guided model of a pipeline without prompts, and labels (n,), or None for an unconditional network."""
    labels = inputs.class_labels(pipeline, name, n)
    compile_for_sampling(pipeline, n)
    return guided_model(pipeline, 1.0 if guidance is None else guidance), labels


@contextmanager
def _opened_for_prompt(
    run: Path, image: Path, prompts: Prompts, backend: str, threads: int | None
) -> Iterator[tuple[TextPipeline, np.ndarray]]:
    """A pipeline with prompts, its sampler DDIM, and the image (1, H, W, C) at the size that it was trained on."""
    machine.use_threads(threads, backend)
    pipeline = text_to_image.with_prompts(open_for("text", run, backend, sampler="ddim"))
    x0 = inputs.load_network_input(image, pipeline.image_shape)
    with adapted(pipeline, prompts.loras, prompts.embeddings) as pipeline:
        check_prompts(pipeline, prompts)
        yield pipeline, x0


def _one_label(pipeline: Pipeline, name: str | None) -> np.ndarray | None:
    """The label (1,) of a class; None for a network without classes. Raises MinidiffError unless it is one class."""
    if pipeline.num_class_embeds is not None and name in (None, "all"):
        raise MinidiffError(f"{pipeline.folder}: was trained by class; give the class of the image")
    return inputs.class_labels(pipeline, name, 1)


def _inverted(
    pipeline: Pipeline, x0: np.ndarray, steps: int, label: np.ndarray | None, fixed_point: int, tick: Tick
) -> np.ndarray:
    """The noise x_T of an image. Raises MinidiffError if it is not finite."""
    model = as_model(pipeline.unet, pipeline.schedule)
    x_T = last_x_t(editing.invert(model, pipeline.schedule, x0, steps, label, fixed_point), tick)
    if not np.isfinite(x_T).all():
        raise MinidiffError("the fixed-point iteration diverges: take more --steps, or a smaller --fixed-point")
    return x_T


def _from_noise(pipeline: Pipeline, x_T: np.ndarray, steps: int, label: np.ndarray | None, tick: Tick) -> np.ndarray:
    """The sample from x_T by the sampler that `editing.invert` inverts, which draws no random numbers."""
    model, rng = as_model(pipeline.unet, pipeline.schedule), np.random.default_rng(0)
    return last_x_t(sample(model, pipeline.schedule, x_T.shape, rng, steps, editing.INVERTIBLE, label, x_T=x_T), tick)


def _sampled(trajectory: Trajectory, steps: int, what: str = "sampling") -> np.ndarray:
    """The last x_t (N, H, W, C) of a trajectory, with a progress bar."""
    return with_progress_bar(what, max(steps, 1), lambda tick: last_x_t(trajectory, tick))


def _write_sheet(out: Path, images: np.ndarray, columns: int | None = None) -> None:
    """Write images (N, H, W, C) uint8 as one grid."""
    imaging.save_image(imaging.sheet(images, columns), out)
    console.print(f"Wrote {out}")
