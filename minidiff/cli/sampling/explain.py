"""The command that shows the effect of a prompt."""

from pathlib import Path
from typing import Annotated

import typer

from minidiff import machine
from minidiff.cli.options import PLACE, Backend, Guidance, Seed, Steps, Threads, valid_text
from minidiff.data import imaging
from minidiff.files import check_new_folder, new_folder
from minidiff.formats.run_networks import kept_pipelines
from minidiff.formats.run_state import kept_states
from minidiff.sampling.dry_run import compile_for_sampling
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_sheets import (
    GUIDANCE_SCALES,
    PromptSettings,
    attention_sheet,
    guidance_sheet,
    replaced_words,
    training_sheet,
    word_replacement_sheet,
)
from minidiff.sampling.text_to_image import with_prompts
from minidiff.terminal import console, with_progress_bar


def explain(
    run: Annotated[Path, typer.Argument(help="A run of train --text, or a Stable Diffusion folder.")],
    prompt: Annotated[str, typer.Option(callback=valid_text, help="Text to condition on.")],
    to: Annotated[
        str | None, typer.Option(callback=valid_text, help="Prompt of as many words, which replace it one by one.")
    ] = None,
    out: Annotated[Path, typer.Option(help="A new folder.", **PLACE)] = Path("explained"),
    guidance: Guidance = 4.0,
    steps: Steps = 25,
    seed: Seed = 0,
    backend: Backend = "numba",
    threads: Threads = None,
) -> None:
    """The effect of a prompt, on sheets of images that all start from the same noise.

    guidance.png: guidance scales 1 to 10. attention.png: the cross-attention map of each word. words.png: the prompt's
    words replaced by those of --to. training.png: the image by each checkpoint of a run (train with a larger --keep).
    """
    machine.use_threads(threads, backend)
    check_new_folder(out)
    pipeline = with_prompts(open_pipeline(run, backend, kind="text"))
    num_checkpoints = len(kept_states(run))
    num_images = len(GUIDANCE_SCALES) + 1 + (len(replaced_words(prompt, to)) if to else 0) + num_checkpoints
    compile_for_sampling(pipeline)

    def write_sheets(tick) -> None:
        settings = PromptSettings(prompt, guidance, steps, seed, tick)
        with new_folder(out) as folder:
            imaging.save_image(guidance_sheet(pipeline, settings), folder / "guidance.png")
            imaging.save_image(attention_sheet(pipeline, settings), folder / "attention.png")
            if to:
                imaging.save_image(word_replacement_sheet(pipeline, settings, to), folder / "words.png")
            if num_checkpoints:
                imaging.save_image(training_sheet(settings, kept_pipelines(pipeline)), folder / "training.png")

    with_progress_bar("sampling", num_images * steps, write_sheets)
    console.print(f"Wrote {out}")
