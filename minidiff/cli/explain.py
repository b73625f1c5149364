"""The command that shows what a text does."""

from pathlib import Path
from typing import Annotated

import typer

from minidiff import machine
from minidiff.cli.options import PLACE, Backend, Seed, Threads, valid_text
from minidiff.data import imaging
from minidiff.files import check_new_folder, new_folder
from minidiff.formats.run_networks import kept_pipelines
from minidiff.formats.run_state import kept_states
from minidiff.formats.stable_diffusion import load_pipeline
from minidiff.sampling.text_sheets import (
    GUIDANCE_SCALES,
    PromptSettings,
    attention_sheet,
    guidance_sheet,
    training_sheet,
    word_swap_sheet,
    word_swaps,
)
from minidiff.terminal import announce_compiling, console, with_progress_bar


def explain(
    run: Annotated[Path, typer.Argument(help="A run of train --text, or a folder of Stable Diffusion.")],
    prompt: Annotated[str, typer.Option(callback=valid_text, help="What to draw.")],
    to: Annotated[str | None, typer.Option(callback=valid_text, help="As many words, to be put in one by one.")] = None,
    out: Annotated[Path, typer.Option(help="A new folder.", **PLACE)] = Path("explained"),
    guidance: Annotated[float, typer.Option(help="How much to insist.")] = 4.0,
    steps: Annotated[int, typer.Option(help="From noise to picture.", min=1)] = 25,
    seed: Seed = 0,
    backend: Backend = "numba",
    threads: Threads = None,
) -> None:
    """What a text does, on sheets of pictures that all begin as the same noise.

    guidance.png: insisted on, from 1 to 10. attention.png: where each word was heard. words.png: its words swapped for
    those of --to. training.png: drawn by each state that a run has kept, so train with a larger --keep.
    """
    machine.use_threads(threads, backend)
    check_new_folder(out)
    parts = load_pipeline(run, backend)
    kept_steps = len(kept_states(run))
    walks = len(GUIDANCE_SCALES) + 1 + (len(word_swaps(prompt, to)) if to else 0) + kept_steps
    announce_compiling(backend)

    def draw(tick) -> None:
        asked = PromptSettings(prompt, guidance, steps, seed, tick)
        with new_folder(out) as folder:
            imaging.save_image(guidance_sheet(parts, asked), folder / "guidance.png")
            imaging.save_image(attention_sheet(parts, asked), folder / "attention.png")
            if to:
                imaging.save_image(word_swap_sheet(parts, asked, to), folder / "words.png")
            if kept_steps:
                imaging.save_image(training_sheet(asked, kept_pipelines(run, backend)), folder / "training.png")

    with_progress_bar("drawing", walks * steps, draw)
    console.print(f"Wrote {out}")
