"""The command that samples images: without a prompt, or of one prompt after the other."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from minidiff import machine
from minidiff.cli import options
from minidiff.cli.options import PLACE
from minidiff.data import imaging
from minidiff.data.captioned_sheet import captioned_sheet
from minidiff.data.prompt_file import read_prompts
from minidiff.diffusion.reverse import Tick, sample
from minidiff.errors import MinidiffError
from minidiff.files import new_folder
from minidiff.formats.folders import describe
from minidiff.formats.pipeline import Pipeline, TextPipeline
from minidiff.formats.run_state import WrongKind
from minidiff.models.tokenizer import Tokenizer
from minidiff.sampling import inputs, outputs, text_to_image
from minidiff.sampling.opening import Weights, chosen_weights, open_pipeline
from minidiff.sampling.settings import accuracy_warning, guided_model, sampling_settings
from minidiff.terminal import announce_compiling, console, print_warning, with_progress_bar

TOKENS_SHOWN = 10  # of the part of a prompt that is cut off
PROMPT_GUIDANCE = 7.5  # default guidance scale with a prompt, Stable Diffusion's


@dataclass(frozen=True)
class Prompts:
    """Prompts, the negative prompt of all of them ("" for none), and the guidance scale."""

    texts: list[str]
    negative: str
    guidance: float


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
        int | None, typer.Option(help="Number of images.  [default: 64, or 1 per prompt]", min=1, max=100_000)
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
    ema: options.EMA = None,
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
    Diffusion folder, where the guidance scale is 7.5 by default, and 1 without a prompt.

    With --noise torch the noise is that of torch.Generator().manual_seed(SEED), and the images are those of the
    folder's own scheduler in diffusers 0.42.1, up to rounding, with the exceptions in docs/samplers.md.
    """
    machine.use_threads(threads, backend)
    out = Path("sheet.png") if out is None and folder is None else out
    outputs.check_outputs(out, gif, npz, folder, *filter(None, [prompts]))
    weights = chosen_weights(raw, best, step)
    texts = [*(prompt or []), *(read_prompts(prompts) if prompts else [])]
    if not texts:
        check_prompt_options({"negative-prompt": negative_prompt, "height": height, "width": width})
    elif name or gif:
        raise MinidiffError("--class and --gif do not go with a prompt: leave them out")
    rng = inputs.noise_source(noise, seed)
    pipeline = open_for(bool(texts), run, backend, weights, sampler, as_diffusers=noise == "torch", ema=ema)
    pipeline, steps = sampling_settings(pipeline, steps, eta, spacing, karras)
    print_warning(accuracy_warning(pipeline, steps))
    if isinstance(pipeline, TextPipeline):
        given = Prompts(texts, negative_prompt or "", PROMPT_GUIDANCE if guidance is None else guidance)
        images = _sample_prompts(pipeline, n or 1, given, (height, width), steps, rng)
        sheet = partial(_prompt_sheet, images, texts)
    else:
        labels = inputs.class_labels(pipeline, name, n or 64)
        model = guided_model(pipeline, 1.0 if guidance is None else guidance)
        images = _sample_batches(
            pipeline, model, inputs.batches(n or 64, pipeline.image_shape, labels), steps, rng, gif
        )
        sheet = partial(imaging.sheet, images, **outputs.rows_by_class(labels))
    if folder:
        with new_folder(folder) as part:
            imaging.save_each(images, part)
    if npz:
        outputs.write_npz(npz, images)
    if out:
        imaging.save_image(sheet(), out)
    console.print("Wrote " + " and ".join(str(path) for path in (out, folder, npz, gif) if path))


def _sample_batches(
    pipeline: Pipeline, model: Callable[..., Any], batches: list[Any], steps: int, rng: Any, gif: Path | None
) -> np.ndarray:
    """The images (n, H, W, C) uint8 of all batches (shape, labels).

    The trajectory of the first image is written to `gif`, if that is given.
    """
    images, frames = [], []
    announce_compiling(pipeline.unet.backend.name)

    def sample_all(tick: Tick) -> None:
        for shape, cond in batches:
            x_t = np.empty(shape)
            for _, x_t, _ in sample(model, pipeline.schedule, shape, rng, steps, pipeline.sampler, cond):
                if gif and not images:
                    frames.append(imaging.sheet(imaging.to_uint8(x_t[:1]), scale=8, gap=0))
                tick()
            images.append(outputs.finished(x_t))

    with_progress_bar("sampling", steps * len(batches), sample_all)
    if gif:
        imaging.save_gif(frames, gif)
    return np.concatenate(images)


def _sample_prompts(
    pipeline: TextPipeline, n: int, prompts: Prompts, size: tuple[int | None, int | None], steps: int, rng: Any
) -> np.ndarray:
    """n images of each prompt, (n * prompts, H, W, C) uint8. size: (height, width), None for the model's own."""
    height, width = (own if given is None else given for given, own in zip(size, pipeline.image_shape[:2], strict=True))
    text_to_image.check_size(pipeline, (height, width))
    check_prompts(pipeline, prompts)

    def sample_one(prompt: str, tick: Tick) -> np.ndarray:
        return text_to_image.text_to_image(
            pipeline, [prompt], prompts.negative, prompts.guidance, steps, rng, (height, width), tick=tick
        )

    return sample_one_by_one([prompt for prompt in prompts.texts for _ in range(n)], steps, sample_one)


def _prompt_sheet(images: np.ndarray, prompts: list[str]) -> Image.Image:
    """A grid of images (N, H, W, C) uint8, N / len(prompts) of each prompt; of several prompts with captions."""
    if len(prompts) == 1:
        return imaging.sheet(images, gap=0 if len(images) == 1 else 4)  # a single image has no border
    n = len(images) // len(prompts)
    return captioned_sheet(images, [prompt for prompt in prompts for _ in range(n)], min(n, 16))


def open_for(
    prompt: bool,
    folder: Path,
    backend: str,
    weights: Weights | None = None,
    sampler: str | None = None,
    as_diffusers: bool = False,
    ema: float | None = None,
) -> Pipeline:
    """The folder opened, if it takes prompts as they are given, or not given; the rest as of `open_pipeline`."""
    try:
        return open_pipeline(folder, backend, weights, sampler, as_diffusers, "text" if prompt else "unet", ema)
    except WrongKind as error:
        if error.kind == "text":
            raise MinidiffError(f"{describe(folder, error.kind)}; give --prompt") from None
        raise


def check_prompt_options(prompt_options: dict[str, Any]) -> None:
    """Raises MinidiffError for options, name -> value or None, that are given though they need a prompt."""
    for option, value in prompt_options.items():
        if value is not None:
            raise MinidiffError(f"--{option} needs a prompt: give --prompt too, or leave it out")


def check_prompts(pipeline: TextPipeline, prompts: Prompts) -> None:
    """Raises MinidiffError for an invalid guidance scale; names on stderr the tokens that are cut off."""
    text_to_image.check_guidance(prompts.guidance)
    named = [*(("--prompt", text) for text in prompts.texts), ("--negative-prompt", prompts.negative)]
    for option, text in named:
        if note := _truncation(pipeline.tokenizer, text):
            print_warning(f"{option}: {note}")
    announce_compiling(pipeline.unet.backend.name)


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
