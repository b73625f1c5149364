"""Sampling of prompts, for the commands that sample and edit (sample.py, edit.py)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minidiff import ranks
from minidiff.cli.sampling.points import check_no_image_options
from minidiff.data import imaging
from minidiff.data.captioned_sheet import captioned_sheet, labelled_grid
from minidiff.diffusion.reverse import Tick
from minidiff.errors import MinidiffError
from minidiff.formats.folders import FOUND, describe, find
from minidiff.formats.pipeline import Pipeline, TextPipeline
from minidiff.formats.run_state import WrongKind
from minidiff.sampling import inputs, outputs, text_to_image
from minidiff.sampling.adapted import adapted
from minidiff.sampling.dry_run import compile_for_sampling
from minidiff.sampling.opening import Kind, Weights, open_pipeline
from minidiff.sampling.preview import previewer
from minidiff.sampling.prompts import weighted
from minidiff.terminal import with_progress_bar

PROMPT_GUIDANCE = 7.5  # default guidance scale with a prompt, Stable Diffusion's


@dataclass(frozen=True)
class Prompts:
    """Prompts, and what goes with all of them.

    negative    "" for none
    guidance    guidance scale
    loras       each "PATH" or "PATH:WEIGHT"
    embeddings  files of textual inversion
    """

    texts: list[str]
    negative: str
    guidance: float
    loras: list[str]
    embeddings: list[Path]


def one_prompt(
    prompt: str,
    negative_prompt: str | None,
    guidance: float | None,
    name: str | None,
    loras: list[str] | None,
    embeddings: list[Path] | None,
) -> Prompts:
    """The options of a prompt. Raises MinidiffError if a class is given too."""
    if name is not None:
        raise MinidiffError("--class does not go with a prompt: leave it out")
    guidance = PROMPT_GUIDANCE if guidance is None else guidance
    return Prompts([prompt], negative_prompt or "", guidance, loras or [], embeddings or [])


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


def sample_prompts(
    pipeline: TextPipeline,
    n: int,
    prompts: Prompts,
    size: tuple[int | None, int | None],
    steps: int,
    rngs: Iterator[Any],
    preview: Path | None = None,
) -> np.ndarray:
    """n images of each prompt, (n * prompts, H, W, C) uint8, each with the next of rngs.

    size is (height, width), None for the model's own. preview: file for previews of each
    """
    height, width = (own if given is None else given for given, own in zip(size, pipeline.image_shape[:2], strict=True))
    text_to_image.check_size(pipeline, (height, width))
    shape = text_to_image.latent_shape(pipeline, 1, (height, width))
    settings = (prompts.negative, prompts.guidance, steps)
    batches = [(shape, prompt) for prompt in prompts.texts for _ in range(n)]
    with adapted(pipeline, prompts.loras, prompts.embeddings) as pipeline:
        check_prompts(pipeline, prompts)
        watch = previewer(pipeline, preview, steps) if preview and ranks.rank() == 0 else lambda x0_hat: None

        def sample_one(prompt: str, rng: Any, tick: Tick) -> np.ndarray:
            return text_to_image.text_to_image(
                pipeline, [prompt], *settings, rng, (height, width), tick=tick, watch=watch
            )

        def sample_all(tick: Tick) -> list[np.ndarray]:
            own = inputs.of_this_rank(batches, rngs, pipeline, steps)
            return [outputs.finished(sample_one(prompt, rng, tick)) for _, prompt, rng in own]

        images = with_progress_bar("sampling", steps * inputs.num_of_this_rank(len(batches)), sample_all)
    return inputs.of_all_ranks(images, (height, width, pipeline.image_shape[2]))


def prompt_sheet(images: np.ndarray, prompts: list[str], seeds: list[int] | None = None) -> Image.Image:
    """A grid of images (N, H, W, C) uint8, N / len(prompts) of each prompt; of several prompts with captions.

    With seeds, those of the images of each prompt, several prompts are labelled rows, and seeds labelled columns.
    """
    if len(prompts) == 1:
        return imaging.sheet(images, gap=0 if len(images) == 1 else 4)  # a single image has no border
    if seeds:
        return labelled_grid(images, prompts, [f"seed {seed}" for seed in seeds])
    n = len(images) // len(prompts)
    return captioned_sheet(images, [prompt for prompt in prompts for _ in range(n)], min(n, 16))


def check_prompt_options(folder: Path, prompt_options: dict[str, Any]) -> None:
    """Raises MinidiffError for options, name -> value or None, that are given though they need a prompt."""
    for option, value in prompt_options.items():
        if value is not None:
            if find(folder, *FOUND).kind == "points":
                check_no_image_options(folder, prompt_options)
            raise MinidiffError(f"--{option} needs a prompt: give --prompt too, or leave it out")


def check_prompts(pipeline: TextPipeline, prompts: Prompts) -> None:
    """Raises MinidiffError for an invalid guidance scale and for invalid weights in a prompt."""
    text_to_image.check_guidance(prompts.guidance)
    for text in (*prompts.texts, prompts.negative):
        weighted(text)
    compile_for_sampling(pipeline)


def sample_one_by_one(prompts: list[str], steps: int, sample_one: Callable[[str, Tick], np.ndarray]) -> np.ndarray:
    """The images (N, H, W, C) uint8 of the prompts, with a progress bar.

    sample_one(prompt, tick) returns (1, H, W, C) in [-1, 1] and calls tick() `steps` times
    """

    def sample_all(tick: Tick) -> np.ndarray:
        return np.concatenate([outputs.finished(sample_one(prompt, tick)) for prompt in prompts])

    return with_progress_bar("sampling", steps * len(prompts), sample_all)
