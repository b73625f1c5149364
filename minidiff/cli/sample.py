"""The command that samples images: without a prompt, or of one prompt after the other."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from minidiff import machine
from minidiff.cli import options
from minidiff.cli.options import PLACE
from minidiff.cli.sample_points import POINTS, check_no_image_options, sample_points
from minidiff.data import imaging
from minidiff.data.captioned_sheet import captioned_sheet
from minidiff.data.prompt_file import read_prompts
from minidiff.diffusion.reverse import Tick, sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule
from minidiff.errors import MinidiffError
from minidiff.files import new_folder
from minidiff.formats.folders import describe, kind_of
from minidiff.formats.stable_diffusion import Pipeline
from minidiff.models.tokenizer import Tokenizer
from minidiff.sampling import inputs, outputs, setup, text_to_image
from minidiff.sampling.settings import accuracy_warning, sampling_settings
from minidiff.terminal import announce_compiling, console, stderr_console, with_progress_bar

TOKENS_SHOWN = 10  # of the part of a prompt that is cut off
PROMPT_GUIDANCE = 7.5  # default guidance scale with a prompt, Stable Diffusion's


@dataclass(frozen=True)
class Prompts:
    """Prompts, the negative prompt of all of them ("" for none), and the guidance scale."""

    texts: list[str]
    negative: str
    guidance: float


@dataclass(frozen=True)
class Settings:
    """How images are sampled, whatever the network.

    folder    a run, or a folder of diffusers
    sampling  keyword arguments of `sampling_settings`
    weights   of a run; None: those that its folder exports
    rng       source of the noise
    """

    folder: Path
    sampling: dict[str, Any]
    weights: setup.Choice
    rng: Any
    backend: str


def sample_command(
    run: options.ModelFolder,
    out: Annotated[
        Path | None, typer.Option(help="Output image, a grid.  [default: sheet.png; with --folder: none]", **PLACE)
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="New folder for one PNG file per image.", **PLACE)] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(callback=options.valid_text, help="Text to condition on; may be repeated.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="File of prompts, one per line.")] = None,
    negative_prompt: options.NegativePrompt = None,
    height: Annotated[int | None, typer.Option(help="Image height with a prompt.  [default: the model's]")] = None,
    width: Annotated[int | None, typer.Option(help="Image width with a prompt.  [default: the model's]")] = None,
    n: Annotated[
        int | None,
        typer.Option(help="Number of images.  [default: 64, or 1 per prompt; of points 2000]", min=1, max=100_000),
    ] = None,
    name: options.ClassName = None,
    guidance: options.GuidanceScale = None,
    steps: Annotated[int | None, typer.Option(help="Number of sampling steps.  [default: 50; with ddpm, all]")] = None,
    sampler: Annotated[options.SamplerName | None, typer.Option(help="Sampler.  [default: the folder's]")] = None,
    eta: Annotated[float, typer.Option(help="DDIM's eta, from 0 (deterministic) to 1.")] = 0.0,
    spacing: Annotated[
        options.SpacingName | None, typer.Option(help="Timestep spacing.  [default: the folder's]")
    ] = None,
    karras: Annotated[bool, typer.Option("--karras", help="Use the sigmas of Karras et al. 2022.")] = False,
    raw: options.Raw = False,
    best: options.Best = False,
    step: Annotated[int | None, typer.Option(help="Use the checkpoint of this step.")] = None,
    seed: options.Seed = 0,
    noise: Annotated[
        options.NoiseSource, typer.Option(help="Random generator; torch also follows diffusers' timesteps.")
    ] = "numpy",
    npz: Annotated[
        Path | None, typer.Option(help="Also write the images to this .npz file, as arr_0.", **PLACE)
    ] = None,
    gif: Annotated[Path | None, typer.Option(help="Also write the first image's trajectory as a GIF.", **PLACE)] = None,
    backend: options.Backend = "numba",
    threads: options.Threads = None,
) -> None:
    """Sample images (reverse diffusion) and write them as one grid.

    Takes unconditional and class-conditional networks; with --prompt or --prompts, a run of train --text or a Stable
    Diffusion folder, where the guidance scale is 7.5 by default, and 1 without a prompt. The output of a run on points
    is a figure of the samples beside the data, trajectories and the score field; --npz has the points, float32.

    With --noise torch the noise is that of torch.Generator().manual_seed(SEED), and the images are those of the
    folder's own scheduler in diffusers 0.42.1, up to rounding, with the exceptions in docs/samplers.md.
    """
    machine.use_threads(threads, backend)
    out = Path("sheet.png") if out is None and folder is None else out
    outputs.check_outputs(out, gif, npz, folder, *filter(None, [prompts]))
    weights = setup.chosen_weights(raw, best, step)
    texts = [*(prompt or []), *(read_prompts(prompts) if prompts else [])]
    points = kind_of(run) == "points"
    if points:
        names = {"folder": folder, "prompt": prompt, "prompts": prompts, "negative-prompt": negative_prompt}
        check_no_image_options(run, names | {"height": height, "width": width, "gif": gif})
    elif not texts:
        check_no_prompt(run, {"negative-prompt": negative_prompt, "height": height, "width": width})
    elif name or gif:
        raise MinidiffError("--class and --gif do not go with a prompt: leave them out")
    sampling = dict(sampler=sampler, eta=eta, spacing=spacing, karras=karras, steps=steps, noise=noise)
    settings = Settings(run, sampling, weights, inputs.noise_source(noise, seed), backend)
    if points:
        scale, levels = 1.0 if guidance is None else guidance, settings_of(run, sampling)
        images, sheet = sample_points(run, n or POINTS, name, scale, levels, weights, settings.rng, backend)
    elif texts:
        given = Prompts(texts, negative_prompt or "", PROMPT_GUIDANCE if guidance is None else guidance)
        images = _sample_prompts(settings, n or 1, given, (height, width))
        sheet = partial(_prompt_sheet, images, texts)
    else:
        images, labels = _sample_classes(settings, n or 64, name, 1.0 if guidance is None else guidance, gif)
        sheet = partial(imaging.sheet, images, **outputs.rows_by_class(labels))
    if folder:
        with new_folder(folder) as part:
            imaging.save_each(images, part)
    if npz:
        outputs.write_npz(npz, images)
    if out:
        imaging.save_image(sheet(), out)
    console.print("Wrote " + " and ".join(str(path) for path in (out, folder, npz, gif) if path))


def settings_of(folder: Path, sampling: dict[str, Any]) -> tuple[AnySchedule, Sampler, int]:
    """`sampling_settings`; a warning of theirs is printed on stderr."""
    schedule, sampler, steps = sampling_settings(folder, **sampling)
    if warning := accuracy_warning(schedule, sampler, steps):
        stderr_console.print(f"minidiff: {warning}")
    return schedule, sampler, steps


def _sample_classes(
    settings: Settings, n: int, name: str | None, guidance: float, gif: Path | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """n images (n, H, W, C) uint8 of a network without prompts, and their labels (n,); None of an unconditional one.

    The trajectory of the first image is written to `gif`, if that is given.
    """
    folder, backend = settings.folder, settings.backend
    unet = setup.load_image_unet(folder, backend, settings.weights)
    schedule, sampler, steps = settings_of(folder, settings.sampling)
    labels = inputs.class_labels(folder, unet, name, n)
    model = setup.guided_model(folder, unet, schedule, guidance)
    batches = inputs.batches(n, unet, labels)
    images, frames = [], []
    announce_compiling(backend)

    def sample_batches(tick: Tick) -> None:
        for shape, cond in batches:
            x_t = np.empty(shape)
            for _, x_t, _ in sample(model, schedule, shape, settings.rng, steps, sampler, cond):
                if gif and not images:
                    frames.append(imaging.sheet(imaging.to_uint8(x_t[:1]), scale=8, gap=0))
                tick()
            images.append(outputs.finished(x_t))

    with_progress_bar("sampling", steps * len(batches), sample_batches)
    if gif:
        imaging.save_gif(frames, gif)
    return np.concatenate(images), labels


def _sample_prompts(settings: Settings, n: int, prompts: Prompts, size: tuple[int | None, int | None]) -> np.ndarray:
    """n images of each prompt, (n * prompts, H, W, C) uint8. size: (height, width), None for the model's own."""
    parts = setup.open_texts(settings.folder, settings.backend, settings.weights)
    schedule, sampler, steps = settings_of(settings.folder, settings.sampling)
    parts = replace(parts, schedule=schedule)
    native = text_to_image.native_size(parts)
    height, width = (own if given is None else given for given, own in zip(size, native, strict=True))
    text_to_image.check_size(parts, (height, width))
    check_prompts(parts, prompts, settings.backend)

    def sample_one(prompt: str, tick: Tick) -> np.ndarray:
        return text_to_image.text_to_image(
            parts,
            [prompt],
            prompts.negative,
            prompts.guidance,
            steps,
            settings.rng,
            (height, width),
            sampler,
            tick,
        )

    return sample_one_by_one([prompt for prompt in prompts.texts for _ in range(n)], steps, sample_one)


def _prompt_sheet(images: np.ndarray, prompts: list[str]) -> Image.Image:
    """A grid of images (N, H, W, C) uint8, N / len(prompts) of each prompt; of several prompts with captions."""
    if len(prompts) == 1:
        return imaging.sheet(images, gap=0 if len(images) == 1 else 4)  # a single image has no border
    n = len(images) // len(prompts)
    return captioned_sheet(images, [prompt for prompt in prompts for _ in range(n)], min(n, 16))


def check_no_prompt(folder: Path, prompt_options: dict[str, Any]) -> None:
    """Raises MinidiffError if a folder needs a prompt, or if options are given that go only with one.

    prompt_options: names -> values, None for one that is not given
    """
    if kind_of(folder) == "text":
        raise MinidiffError(f"{describe(folder)}; give --prompt")
    for option, value in prompt_options.items():
        if value is not None:
            raise MinidiffError(f"--{option} needs a prompt: give --prompt too, or leave it out")


def check_prompts(parts: Pipeline, prompts: Prompts, backend: str) -> None:
    """Raises MinidiffError for an invalid guidance scale; names on stderr the tokens that are cut off."""
    text_to_image.check_guidance(prompts.guidance)
    named = [*(("--prompt", text) for text in prompts.texts), ("--negative-prompt", prompts.negative)]
    for option, text in named:
        if note := _truncation(parts.tokenizer, text):
            stderr_console.print(f"minidiff: {option}: {note}")
    announce_compiling(backend)


def _truncation(tokenizer: Tokenizer, text: str) -> str:
    """A message that names the tokens of a text beyond the tokenizer's maximum length; "" if all fit."""
    cut = tokenizer.cut(text)
    if not cut:
        return ""
    beginning = tokenizer.decode(cut[:TOKENS_SHOWN]) + (" ..." if len(cut) > TOKENS_SHOWN else "")
    return f"longer than {tokenizer.length} tokens; left out the last {len(cut)}: {beginning}"


def sample_one_by_one(prompts: list[str], steps: int, sample_one: Callable[[str, Tick], np.ndarray]) -> np.ndarray:
    """The images (N, H, W, C) uint8 of the prompts, with a progress bar.

    sample_one(prompt, tick) returns (1, H, W, C) in [-1, 1] and calls tick() `steps` times
    """

    def sample_all(tick: Tick) -> np.ndarray:
        return np.concatenate([outputs.finished(sample_one(prompt, tick)) for prompt in prompts])

    return with_progress_bar("sampling", steps * len(prompts), sample_all)
