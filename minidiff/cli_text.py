"""What `minidiff sample` does where a text is to be drawn, with a folder of Stable Diffusion."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minidiff.data import pictures
from minidiff.errors import MinidiffError
from minidiff.runs import drawing, pipeline, text
from minidiff.runs.terminal import announce_compiling, errors, with_bar


def refuse(folder: Path, only_of_texts: dict[str, Any]) -> None:
    """Raises MinidiffError if a folder wants a text and gets none, or if options are given that only a text has."""
    if pipeline.is_pipeline(folder):
        raise MinidiffError(f"{folder}: draws what a text says; give --prompt")
    for option, value in only_of_texts.items():
        if value is not None:
            raise MinidiffError(f"--{option} is for texts: give --prompt too, or leave it out")


def draw(
    folder: Path,
    settings: tuple,
    n: int,
    asked: tuple[str, str, float],
    size: tuple[int | None, int | None],
    rng: Any,
    backend: str,
) -> np.ndarray:
    """n pictures (n, H, W, 3) uint8 of one text, one after the other, with a bar.

    settings  of the walk, as of `drawing.walk_of`; asked: prompt, negative prompt and guidance
    """
    parts = pipeline.load_pipeline(folder, backend)
    schedule, sampler, steps = drawing.walk_of(folder, *settings)
    parts = replace(parts, schedule=schedule)
    native = text.native_size(parts)
    height, width = (own if given is None else given for given, own in zip(size, native, strict=True))
    text.checked_size(parts, (height, width))
    prompt, negative_prompt, guidance = asked
    text.check_guidance(guidance)
    for name, words in (("--prompt", prompt), ("--negative-prompt", negative_prompt)):
        if cut := parts.tokenizer.cut(words):
            errors.print(f"minidiff: {name}: a text has {parts.tokenizer.length} places; left out: {cut}")
    announce_compiling(backend)
    drawn: list[np.ndarray] = []

    def one_after_the_other(tick: Callable[[], object]) -> None:
        for _ in range(n):
            more = steps, rng, (height, width), sampler, tick
            drawn.append(pictures.to_uint8(text.text_to_image(parts, [prompt], negative_prompt, guidance, *more)))

    with_bar("drawing", steps * n, one_after_the_other)
    return np.concatenate(drawn)
