"""The command that samples images: without a prompt, or of one prompt after the other."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from minidiff import machine
from minidiff.cli import options
from minidiff.cli.options import PLACE
from minidiff.cli.sample_points import NUM_POINTS, check_no_image_options, sample_points
from minidiff.data import imaging
from minidiff.data.captioned_sheet import captioned_sheet
from minidiff.data.dataset import slices
from minidiff.data.prompt_file import read_prompts
from minidiff.diffusion.guidance import ALWAYS
from minidiff.diffusion.reverse import Tick, sample
from minidiff.errors import MinidiffError
from minidiff.files import new_folder
from minidiff.formats.folders import FOUND, describe, find
from minidiff.formats.pipeline import Pipeline, PointsPipeline, TextPipeline
from minidiff.formats.run_state import WrongKind
from minidiff.models.tokenizer import Tokenizer
from minidiff.sampling import inputs, outputs, text_to_image
from minidiff.sampling.dry_run import compile_for_sampling
from minidiff.sampling.guidance import Guidance, model_and_labels
from minidiff.sampling.loras import merged_loras, open_loras
from minidiff.sampling.opening import Kind, Weights, chosen_weights, open_pipeline
from minidiff.sampling.settings import accuracy_warning, sampling_settings
from minidiff.terminal import console, print_warning, with_progress_bar

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
    lora: Annotated[
        list[str] | None,
        typer.Option(
            callback=options.valid_text,
            help="A LoRA: its folder or file, and its weight; may be repeated.",
            metavar="<path[:weight]>",
        ),
    ] = None,
    height: Annotated[int | None, typer.Option(help="Image height with a prompt.  [default: the model's]")] = None,
    width: Annotated[int | None, typer.Option(help="Image width with a prompt.  [default: the model's]")] = None,
    n: Annotated[
        int | None,
        typer.Option(help="Number of images.  [default: 64, or 1 per prompt; of points 2000]", min=1, max=100_000),
    ] = None,
    name: options.ClassName = None,
    guidance: options.GuidanceScale = None,
    classifier: Annotated[
        Path | None,
        typer.Option(help="Run of train-classifier: guides an unconditional model to --class; scale 0 disables it."),
    ] = None,
    autoguide: Annotated[
        int | None, typer.Option(help="Step of a kept checkpoint: guides away from that weaker model.")
    ] = None,
    guidance_interval: Annotated[
        str | None, typer.Option(help="Timesteps at which guidance is applied.  [default: all]", metavar="<low,high>")
    ] = None,
    guidance_rescale: Annotated[
        float,
        typer.Option(help="How far guidance's effect on the standard deviation is undone, 0 to 1."),
    ] = 0.0,
    steps: Annotated[int | None, typer.Option(help="Number of sampling steps.  [default: 50; with ddpm, all]")] = None,
    sampler: Annotated[options.SamplerName | None, typer.Option(help="Sampler.  [default: the folder's]")] = None,
    eta: Annotated[float, typer.Option(help="DDIM's eta, from 0 (deterministic) to 1.")] = 0.0,
    spacing: Annotated[
        options.SpacingName | None, typer.Option(help="Timestep spacing.  [default: the folder's]")
    ] = None,
    karras: Annotated[bool, typer.Option("--karras", help="Use the sigmas of Karras et al. 2022.")] = False,
    churn: Annotated[float, typer.Option(help="EDM's S_churn, fresh noise of euler and heun; 0 adds none.")] = 0.0,
    raw: options.Raw = False,
    best: options.Best = False,
    step: Annotated[int | None, typer.Option(help="Use the checkpoint of this step.")] = None,
    ema: options.EMA = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.  [default: 0]", min=0)] = None,
    seeds: Annotated[
        str | None, typer.Option(help="A seed for each image, such as 0-63 or 3,7,10-12, in place of --seed and --n.")
    ] = None,
    noise: Annotated[
        options.NoiseSource, typer.Option(help="Random generator; torch also follows diffusers' timesteps.")
    ] = "numpy",
    npz: Annotated[
        Path | None, typer.Option(help="Also write the images to this .npz file, as arr_0.", **PLACE)
    ] = None,
    gif: Annotated[Path | None, typer.Option(help="Also write the first image's trajectory as a GIF.", **PLACE)] = None,
    backend: options.Backend = "numba",
    precision: options.Precision = "float32",
    threads: options.Threads = None,
) -> None:
    """Sample images (reverse diffusion) and write them as one grid.

    Takes unconditional and class-conditional networks; with --prompt or --prompts, a run of train --text or a Stable
    Diffusion folder, where the guidance scale is 7.5 by default, and 1 without a prompt. The output of a run on points
    is a figure of the samples beside the data, trajectories and the score field; --npz has the points, float32.

    With --noise torch the noise is that of torch.Generator().manual_seed(SEED), and the images are those of the
    folder's own scheduler in diffusers 0.42.1, up to rounding, with the exceptions in docs/samplers.md.
    """
    machine.use_threads(threads, backend := options.with_precision(backend, precision))
    out = Path("sheet.png") if out is None and folder is None else out
    outputs.check_outputs(out, gif, npz, folder, *filter(None, [prompts]))
    weights = chosen_weights(raw, best, step)
    texts = [*(prompt or []), *(read_prompts(prompts) if prompts else [])]
    if not texts:
        check_prompt_options(run, {"negative-prompt": negative_prompt, "lora": lora, "height": height, "width": width})
    elif name or gif:
        raise MinidiffError("--class and --gif do not go with a prompt: leave them out")
    elif classifier or autoguide is not None or guidance_interval or guidance_rescale:
        raise MinidiffError("with a prompt guidance is classifier-free: of its options give --guidance alone")
    each = _checked_seeds(seeds, seed, n)
    n = len(each) if each else n
    rng = inputs.noise_source(noise, seed or 0)
    kind: Kind | tuple[Kind, ...] = "text" if texts else ("unet", "points")
    try:
        pipeline = open_for(kind, run, backend, weights, sampler, as_diffusers=noise == "torch", ema=ema)
    except WrongKind as error:
        if error.kind == "points":
            check_no_image_options(run, {"prompt": prompt, "prompts": prompts})
        raise
    pipeline, steps = sampling_settings(pipeline, steps, eta, spacing, karras, churn)
    print_warning(accuracy_warning(pipeline, steps))
    if isinstance(pipeline, PointsPipeline):
        others = {"folder": folder, "gif": gif, "seeds": seeds, "classifier": classifier}
        others |= {"autoguide": autoguide, "guidance-interval": guidance_interval}
        check_no_image_options(run, others | {"guidance-rescale": guidance_rescale or None})
        images, sheet = sample_points(
            pipeline, n or NUM_POINTS, name, 1.0 if guidance is None else guidance, steps, rng
        )
    elif isinstance(pipeline, TextPipeline):
        given = Prompts(texts, negative_prompt or "", PROMPT_GUIDANCE if guidance is None else guidance)
        rngs = (inputs.noise_source(noise, each_seed) for _ in texts for each_seed in each) if each else repeat(rng)
        with merged_loras(pipeline, open_loras(pipeline, lora or [])):
            images = _sample_prompts(pipeline, n or 1, given, (height, width), steps, rngs)
        sheet = partial(_prompt_sheet, images, texts)
    else:
        n = n or 64
        interval = ALWAYS if guidance_interval is None else _interval(guidance_interval)
        by_options = Guidance(1.0 if guidance is None else guidance, guidance_rescale, interval, classifier, autoguide)
        model, labels = model_and_labels(pipeline, by_options, name, n, each)
        rngs = (inputs.NoiseOfEach(noise, each[part]) for part in slices(n, inputs.BATCH_SIZE)) if each else repeat(rng)
        images = _sample_batches(pipeline, model, inputs.batches(n, pipeline.image_shape, labels), steps, rngs, gif)
        sheet = partial(imaging.sheet, images, **outputs.rows_by_class(None if each else labels))
    if folder:
        with new_folder(folder) as part:
            imaging.save_each(images, part, _names(each, len(texts)) if each else None)
    if npz:
        outputs.write_npz(npz, images)
    if out:
        imaging.save_image(sheet(), out)
    console.print("Wrote " + " and ".join(str(path) for path in (out, folder, npz, gif) if path))


def _interval(text: str) -> tuple[float, float]:
    """The two numbers of --guidance-interval. Raises MinidiffError if they are not."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not low <= high:  # NaN is not
        raise MinidiffError(f"--guidance-interval {text}: give two timesteps, LOW,HIGH, such as 100,600")
    return low, high


def _checked_seeds(seeds: str | None, seed: int | None, n: int | None) -> list[int] | None:
    """The seeds of --seeds, if it is given. Raises MinidiffError if --seed or --n is given too."""
    if seeds is None:
        return None
    if seed is not None or n is not None:
        raise MinidiffError(f"--seeds takes the place of {'--n' if seed is None else '--seed'}: leave that out")
    return inputs.parse_seeds(seeds)


def _names(seeds: list[int], prompts: int) -> list[str]:
    """File names of images, their seeds; of several prompts, the prompt's number, from 0, and the seed."""
    numbers = [f"{i:05d}-" for i in range(prompts)] if prompts > 1 else [""]
    return [f"{number}{seed:05d}" for number in numbers for seed in seeds]


def _sample_batches(
    pipeline: Pipeline, model: Callable[..., Any], batches: list[Any], steps: int, rngs: Iterable[Any], gif: Path | None
) -> np.ndarray:
    """The images (n, H, W, C) uint8 of all batches (shape, labels); rngs has the source of noise of each.

    The trajectory of the first image is written to `gif`, if that is given.
    """
    images, frames = [], []
    compile_for_sampling(pipeline, batches[0][0][0])

    def sample_all(tick: Tick) -> None:
        for (shape, cond), rng in zip(batches, rngs, strict=False):  # rngs may be endless
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
    pipeline: TextPipeline,
    n: int,
    prompts: Prompts,
    size: tuple[int | None, int | None],
    steps: int,
    rngs: Iterator[Any],
) -> np.ndarray:
    """n images of each prompt, (n * prompts, H, W, C) uint8, each with the next of rngs.

    size is (height, width), None for the model's own.
    """
    height, width = (own if given is None else given for given, own in zip(size, pipeline.image_shape[:2], strict=True))
    text_to_image.check_size(pipeline, (height, width))
    check_prompts(pipeline, prompts)

    def sample_one(prompt: str, tick: Tick) -> np.ndarray:
        return text_to_image.text_to_image(
            pipeline, [prompt], prompts.negative, prompts.guidance, steps, next(rngs), (height, width), tick=tick
        )

    return sample_one_by_one([prompt for prompt in prompts.texts for _ in range(n)], steps, sample_one)


def _prompt_sheet(images: np.ndarray, prompts: list[str]) -> Image.Image:
    """A grid of images (N, H, W, C) uint8, N / len(prompts) of each prompt; of several prompts with captions."""
    if len(prompts) == 1:
        return imaging.sheet(images, gap=0 if len(images) == 1 else 4)  # a single image has no border
    n = len(images) // len(prompts)
    return captioned_sheet(images, [prompt for prompt in prompts for _ in range(n)], min(n, 16))


def open_for(
    kind: Kind | tuple[Kind, ...],
    folder: Path,
    backend: str,
    weights: Weights | None = None,
    sampler: str | None = None,
    as_diffusers: bool = False,
    ema: float | None = None,
) -> Pipeline:
    """`open_pipeline`, with --prompt as the remedy if the folder is of kind "text" and that is not wanted."""
    try:
        return open_pipeline(folder, backend, weights, sampler, as_diffusers, kind, ema)
    except WrongKind as error:
        if error.kind == "text":
            raise MinidiffError(f"{describe(folder, error.kind)}; give --prompt") from None
        raise


def check_prompt_options(folder: Path, prompt_options: dict[str, Any]) -> None:
    """Raises MinidiffError for options, name -> value or None, that are given though they need a prompt."""
    for option, value in prompt_options.items():
        if value is not None:
            if find(folder, *FOUND).kind == "points":
                check_no_image_options(folder, prompt_options)
            raise MinidiffError(f"--{option} needs a prompt: give --prompt too, or leave it out")


def check_prompts(pipeline: TextPipeline, prompts: Prompts) -> None:
    """Raises MinidiffError for an invalid guidance scale; names on stderr the tokens that are cut off."""
    text_to_image.check_guidance(prompts.guidance)
    named = [*(("--prompt", text) for text in prompts.texts), ("--negative-prompt", prompts.negative)]
    for option, text in named:
        if note := _truncation(pipeline.tokenizer, text):
            print_warning(f"{option}: {note}")
    compile_for_sampling(pipeline)


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
