"""What the commands do where a text is to be drawn, with a run of train --text or a folder of Stable Diffusion."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minidiff.data import imaging
from minidiff.data.captioned_sheet import captioned_sheet
from minidiff.errors import MinidiffError
from minidiff.formats.folders import describe, kind_of
from minidiff.formats.stable_diffusion import Pipeline
from minidiff.models.tokenizer import Tokenizer
from minidiff.sampling import outputs, setup, text_to_image
from minidiff.sampling.settings import accuracy_warning, sampling_settings
from minidiff.terminal import announce_compiling, stderr_console, with_progress_bar

SHOWN = 10  # tokens of what is left out of a text
Asked = tuple[list[str], str, float]  # prompts, negative prompt and guidance scale


def refuse(folder: Path, only_of_texts: dict[str, Any]) -> None:
    """Raises MinidiffError if a folder wants a text and gets none, or if options are given that only a text has."""
    if kind_of(folder) == "text":
        raise MinidiffError(f"{describe(folder)}; give --prompt")
    for option, value in only_of_texts.items():
        if value is not None:
            raise MinidiffError(f"--{option} is for texts: give --prompt too, or leave it out")


def left_out(tokenizer: Tokenizer, text: str) -> str:
    """What to tell of a text that is longer than the tokenizer's rows; empty if it fits."""
    cut = tokenizer.cut(text)
    beginning = tokenizer.decode(cut[:SHOWN]) + (" ..." if len(cut) > SHOWN else "")
    return f"longer than {tokenizer.length} tokens; left out the last {len(cut)}: {beginning}" if cut else ""


def draw(
    folder: Path,
    settings: tuple,
    n: int,
    asked: Asked,
    size: tuple[int | None, int | None],
    rng: Any,
    backend: str,
    choice: setup.Choice = None,
) -> np.ndarray:
    """n images of each prompt, (n * prompts, H, W, C) uint8, one after the other, with a bar.

    settings  of the walk, as of `sampling_settings`; choice: of a run's weights
    """
    parts = setup.open_texts(folder, backend, choice)
    schedule, sampler, steps = sampling_settings(folder, *settings)
    if warning := accuracy_warning(schedule, sampler, steps):
        stderr_console.print(f"minidiff: {warning}")
    parts = replace(parts, schedule=schedule)
    native = text_to_image.native_size(parts)
    height, width = (own if given is None else given for given, own in zip(size, native, strict=True))
    text_to_image.check_size(parts, (height, width))
    check(parts, asked, backend)
    prompts, negative_prompt, guidance = asked

    def one(prompt: str, tick: text_to_image.Tick) -> np.ndarray:
        more = steps, rng, (height, width), sampler, tick
        return text_to_image.text_to_image(parts, [prompt], negative_prompt, guidance, *more)

    return one_after_the_other([prompt for prompt in prompts for _ in range(n)], steps, one)


def sheet(images: np.ndarray, prompts: list[str]) -> Image.Image:
    """As many images of each prompt, a row of each above its captions; of a single prompt without them."""
    if len(prompts) == 1:
        return imaging.sheet(images, gap=0 if len(images) == 1 else 4)  # one image is no sheet
    n = len(images) // len(prompts)
    return captioned_sheet(images, [prompt for prompt in prompts for _ in range(n)], min(n, 16))


def check(parts: Pipeline, asked: Asked, backend: str) -> None:
    """Raises MinidiffError for a guidance scale that does not go; says on stderr which words are too many."""
    prompts, negative_prompt, guidance = asked
    text_to_image.check_guidance(guidance)
    for name, words in (*(("--prompt", prompt) for prompt in prompts), ("--negative-prompt", negative_prompt)):
        if cut := left_out(parts.tokenizer, words):
            stderr_console.print(f"minidiff: {name}: {cut}")
    announce_compiling(backend)


def one_after_the_other(
    prompts: list[str], ticks: int, one: Callable[[str, text_to_image.Tick], np.ndarray]
) -> np.ndarray:
    """The images (N, H, W, C) uint8 that one(prompt, tick) samples in [-1, 1]; it calls tick() `ticks` times."""

    def all_of_them(tick: text_to_image.Tick) -> np.ndarray:
        return np.concatenate([outputs.finished(one(prompt, tick)) for prompt in prompts])

    return with_progress_bar("drawing", ticks * len(prompts), all_of_them)
