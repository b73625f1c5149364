"""The command that shows the effect of a prompt."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from minidiff import machine
from minidiff.cli.options import PLACE, Backend, Embeddings, Guidance, LoRAs, Seed, Steps, Threads, valid_text
from minidiff.data import imaging
from minidiff.files import check_new_folder, new_folder
from minidiff.formats.pipeline import TextPipeline
from minidiff.formats.run_networks import kept_pipelines
from minidiff.formats.run_state import kept_states
from minidiff.sampling.adapted import adapted
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
    lora: LoRAs = None,
    embedding: Embeddings = None,
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
    added = lora or [], embedding or []
    with adapted(pipeline, *added) as whole:
        compile_for_sampling(whole)

    def write_sheets(tick) -> None:
        settings = PromptSettings(prompt, guidance, steps, seed, tick)
        with new_folder(out) as folder:
            with adapted(pipeline, *added) as whole:
                imaging.save_image(guidance_sheet(whole, settings), folder / "guidance.png")
                imaging.save_image(attention_sheet(whole, settings), folder / "attention.png")
                if to:
                    imaging.save_image(word_replacement_sheet(whole, settings, to), folder / "words.png")
            if num_checkpoints:
                checkpoints = _adapted_checkpoints(pipeline, *added)
                imaging.save_image(training_sheet(settings, checkpoints), folder / "training.png")

    with_progress_bar("sampling", num_images * steps, write_sheets)
    console.print(f"Wrote {out}")


def _adapted_checkpoints(
    pipeline: TextPipeline, loras: list[str], embeddings: list[Path]
) -> Iterator[tuple[int, TextPipeline]]:
    """`kept_pipelines`, each `adapted` for as long as it is in use; they may share weights, so one at a time."""
    for step, kept in kept_pipelines(pipeline):
        with adapted(kept, loras, embeddings) as whole:
            yield step, whole
