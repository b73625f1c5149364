"""The command that samples images: without a prompt, or of one prompt after the other."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from minidiff import machine, ranks
from minidiff.cli import options
from minidiff.cli.options import PLACE
from minidiff.cli.sampling.like import POSITION, given_options
from minidiff.cli.sampling.points import NUM_POINTS, check_no_image_options, sample_points
from minidiff.cli.sampling.prompts import (
    PROMPT_GUIDANCE,
    Prompts,
    check_prompt_options,
    open_for,
    prompt_sheet,
    sample_prompts,
)
from minidiff.data import imaging
from minidiff.data.dataset import slices
from minidiff.data.prompt_file import read_prompts
from minidiff.diffusion.guidance import ALWAYS
from minidiff.diffusion.reverse import Tick, sample
from minidiff.errors import MinidiffError
from minidiff.files import new_folder
from minidiff.formats.pipeline import Pipeline, PointsPipeline, TextPipeline
from minidiff.formats.run_state import WrongKind
from minidiff.sampling import inputs, outputs
from minidiff.sampling.dry_run import compile_for_sampling
from minidiff.sampling.guidance import Guidance, model_and_labels
from minidiff.sampling.opening import Kind, chosen_weights
from minidiff.sampling.parameters import of_each, parameters
from minidiff.sampling.preview import previewer
from minidiff.sampling.settings import accuracy_warning, sampling_settings
from minidiff.terminal import console, print_warning, with_progress_bar


def sample_command(
    ctx: typer.Context,
    run: options.ModelFolder,
    out: Annotated[
        Path | None, typer.Option(help="Output image, a grid.  [default: sheet.png; with --folder: none]", **PLACE)
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="New folder for one PNG file per image.", **PLACE)] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            callback=options.valid_text, help="Text to condition on, with weights such as (word:1.2); may be repeated."
        ),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="File of prompts, one per line.")] = None,
    negative_prompt: options.NegativePrompt = None,
    like: Annotated[
        Path | None,
        typer.Option(help="A PNG image of this command: its settings are the defaults of all other options."),
    ] = None,
    lora: options.LoRAs = None,
    embedding: options.Embeddings = None,
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
    steps: Annotated[
        int | None, typer.Option(help="Number of sampling steps.  [default: 50; with ddpm, all; with consistency, 2]")
    ] = None,
    sampler: Annotated[options.SamplerName | None, typer.Option(help="Sampler.  [default: the folder's]")] = None,
    eta: Annotated[float, typer.Option(help="DDIM's eta, from 0 (deterministic) to 1.")] = 0.0,
    spacing: Annotated[
        options.SpacingName | None, typer.Option(help="Timestep spacing.  [default: the folder's]")
    ] = None,
    karras: options.Karras = False,
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
    preview: Annotated[
        Path | None, typer.Option(help="While sampling, write an estimate of the images to this file.", **PLACE)
    ] = None,
    backend: options.Backend = "numba",
    precision: options.Precision = "float32",
    threads: options.Threads = None,
) -> None:
    """Sample images (reverse diffusion) and write them as one grid.

    Takes unconditional and class-conditional networks; with --prompt or --prompts, a run of train --text or a Stable
    Diffusion folder, where the guidance scale is 7.5 by default, and 1 without a prompt or of a consistency model. The
    output of a run on points is a figure of the samples beside the data, trajectories and the score field; --npz has
    the points, float32.

    With --noise torch the noise is that of torch.Generator().manual_seed(SEED), and the images are those of the
    folder's own scheduler in diffusers 0.42.1, up to rounding, with the exceptions in docs/samplers.md.

    Started by mpiexec, the processes share out the batches of 64 images, or with a prompt single images.
    """
    machine.use_threads(threads, backend := options.with_precision(backend, precision))
    out = Path("sheet.png") if out is None and folder is None else out
    outputs.check_outputs(out, gif, npz, folder, *filter(None, [prompts, like]), preview=preview)
    weights = chosen_weights(raw, best, step)
    texts = [*(prompt or []), *(read_prompts(prompts) if prompts else [])]
    if not texts:
        for_prompts = {"negative-prompt": negative_prompt, "lora": lora, "embedding": embedding}
        check_prompt_options(run, for_prompts | {"height": height, "width": width})
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
    unguided = not texts or pipeline.sampler.name == "consistency"  # whose tuning had no guidance
    guidance = (1.0 if unguided else PROMPT_GUIDANCE) if guidance is None else guidance
    print_warning(accuracy_warning(pipeline, steps))
    classes, position = None, ctx.meta[POSITION]
    if isinstance(pipeline, PointsPipeline):
        others = {"folder": folder, "gif": gif, "seeds": seeds, "classifier": classifier, "preview": preview}
        others |= {"autoguide": autoguide, "guidance-interval": guidance_interval}
        check_no_image_options(run, others | {"guidance-rescale": guidance_rescale or None})
        n = n or NUM_POINTS
        images, sheet = sample_points(pipeline, n, name, guidance, steps, rng)
    elif isinstance(pipeline, TextPipeline):
        n = n or 1
        given = Prompts(texts, negative_prompt or "", guidance, lora or [], embedding or [])
        rngs = (inputs.noise_source(noise, each_seed) for _ in texts for each_seed in each) if each else repeat(rng)
        images = sample_prompts(pipeline, n, given, (height, width), steps, rngs, preview)
        sheet = partial(prompt_sheet, images, texts, each)
    else:
        n = n or 64
        interval = ALWAYS if guidance_interval is None else _interval(guidance_interval)
        by_options = Guidance(guidance, guidance_rescale, interval, classifier, autoguide)
        model, labels, names = model_and_labels(pipeline, by_options, name, n, each)
        classes = None if labels is None else [names[label] for label in labels]
        rngs = (inputs.NoiseOfEach(noise, each[part]) for part in slices(n, inputs.BATCH_SIZE)) if each else repeat(rng)
        batches = inputs.batches(n, pipeline.image_shape, labels)
        images = _sample_batches(pipeline, model, batches, steps, rngs, gif, preview)
        sheet = partial(imaging.sheet, images, **outputs.rows_by_class(None if each else labels))
    chosen = pipeline.sampler
    taken: dict[str, Any] = dict(steps=steps, sampler=chosen.name, karras=chosen.karras)
    if chosen.name != "consistency":  # whose timesteps are its own
        taken["spacing"] = chosen.spacing
    taken |= dict(guidance=guidance, seed=None if each else seed or 0, n=None if each else n)
    if ranks.rank() > 0:
        return
    size, whole_options = images.shape[1:3], given_options(ctx) | taken
    whole = parameters(whole_options, run, size, texts, negative_prompt or "")
    of_images = of_each(whole, len(images), classes)
    file_names = _names(each, len(texts)) if each else None
    if position is not None:
        images, of_images, file_names = images[[position]], [of_images[position]], None
        whole, sheet = of_images[0], partial(imaging.sheet, images, gap=0)
    if folder:
        with new_folder(folder) as part:
            imaging.save_each(images, part, file_names, map(str, of_images))
    if npz:
        outputs.write_npz(npz, images)
    if out:
        imaging.save_image(sheet(), out, str(whole))
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
    pipeline: Pipeline,
    model: Callable[..., Any],
    batches: list[Any],
    steps: int,
    rngs: Iterable[Any],
    gif: Path | None,
    preview: Path | None,
) -> np.ndarray:
    """The images (n, H, W, C) uint8 of all batches (shape, labels); rngs has the source of noise of each.

    The trajectory of the first image is written to `gif`, if that is given, and previews of each batch to `preview`, of
    several ranks by rank 0.
    """
    images, frames = [], []
    compile_for_sampling(pipeline, batches[0][0][0])
    watch = previewer(pipeline, preview, steps) if preview and ranks.rank() == 0 else lambda x0_hat: None

    def sample_all(tick: Tick) -> None:
        for shape, cond, rng in inputs.of_this_rank(batches, rngs, pipeline, steps):
            x_t = np.empty(shape)
            for _, x_t, x0_hat in sample(model, pipeline.schedule, shape, rng, steps, pipeline.sampler, cond):
                if gif and not images:
                    frames.append(imaging.sheet(imaging.to_uint8(x_t[:1]), scale=8, gap=0))
                watch(x0_hat)
                tick()
            images.append(outputs.finished(x_t))

    with_progress_bar("sampling", steps * inputs.num_of_this_rank(len(batches)), sample_all)
    if gif and ranks.rank() == 0:
        imaging.save_gif(frames, gif)
    return inputs.of_all_ranks(images, pipeline.image_shape)
