"""The command that teaches a model that takes prompts new images: LoRA, textual inversion, DreamBooth."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from minidiff.cli import options
from minidiff.cli.train import given_options, required_data, train_to_end
from minidiff.cli.training_bar import CHECKPOINT_EVERY, KEEP
from minidiff.data import Dataset
from minidiff.data.prompt_file import read_prompts
from minidiff.errors import MinidiffError
from minidiff.formats.run_lock import lock_run
from minidiff.training.kinds.lora_run import LoRARun
from minidiff.training.kinds.text_run import TextRun
from minidiff.training.kinds.textual_inversion_run import TextualInversionRun
from minidiff.training.prior import FOLDER
from minidiff.training.resume import resume as resumed
from minidiff.training.run import Run
from minidiff.training.start_tuning import Prior, start_dreambooth, start_lora, start_textual_inversion

Method = Literal["lora", "textual-inversion", "dreambooth"]
KINDS: dict[str | None, type[Run]] = {
    "lora": LoRARun, "textual-inversion": TextualInversionRun, "dreambooth": TextRun, None: Run,
}  # fmt: skip
# Option -> the only method that has it.
ONLY = {"rank": "lora", "word": "textual-inversion", "initial_word": "textual-inversion"}


def tune(
    out: options.RunFolder,
    run: Annotated[
        Path | None,
        typer.Argument(help="A run of train --text, or a Stable Diffusion folder. Not with --resume."),
    ] = None,
    data: Annotated[str | None, typer.Argument(help="A folder of images with captions. Not with --resume.")] = None,
    method: Annotated[Method | None, typer.Option(help="What is trained.  [default: lora]")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of a LoRA's updates.  [default: 4]")] = None,
    word: Annotated[
        str | None,
        typer.Option(callback=options.valid_text, help="The new word of textual inversion, such as '<robot>'."),
    ] = None,
    initial_word: Annotated[
        str | None,
        typer.Option(callback=options.valid_text, help="Known words, from whose embeddings it starts, one a token."),
    ] = None,
    prior: Annotated[
        Path | None,
        typer.Option(help="Images to keep: a folder with captions, or a file of prompts, of which the model samples."),
    ] = None,
    prior_prompt: Annotated[
        list[str] | None,
        typer.Option(callback=options.valid_text, help="A prompt whose samples to keep; may be repeated."),
    ] = None,
    prior_weight: Annotated[
        float | None,
        typer.Option(help="Weight of prior preservation in the loss, 0: none.  [default: 10; with images 1]"),
    ] = None,
    skip_bad: options.SkipBad = False,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Total number of training steps.  [default: 400]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.  [default: 4]")] = None,
    accumulate: options.Accumulate = None,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr", help="Peak learning rate.  [default: 0.001; dreambooth 0.0001; of a word, by its embedding's scale]"
        ),
    ] = None,
    backend: options.TrainingBackend = None,
    threads: options.Threads = None,
    seed: options.TrainingSeed = None,
    checkpoint_every: options.CheckpointEvery = CHECKPOINT_EVERY,
    keep: options.Keep = KEEP,
    resume: options.Resume = False,
) -> None:
    """Teach a text-conditional model new images: with a LoRA, by a new word, or by training all of it.

    lora trains low-rank updates of the projections of the text encoder's attention and of cross-attention,
    textual-inversion the embedding of a new --word; the model in RUN stays as it is. dreambooth trains a copy of all
    weights but the autoencoder's. With --prior or --prior-prompt, the loss of lora and dreambooth includes as many
    images of what is to be kept. Without them, that of lora keeps the model's predictions for random words.

    Images in a folder are cropped and resized to the model's size; captions.csv or metadata.jsonl has their captions.
    --out holds pytorch_lora_weights.safetensors or learned_embeds.safetensors, which diffusers opens, or the whole
    pipeline; metrics.csv, loss.png, and for every checkpoint a grid of samples and a validation loss (checkpoints.csv).

    To sample: minidiff sample RUN --lora OUT --prompt TEXT, or --embedding OUT; of dreambooth: minidiff sample OUT.
    A LoRA for web interfaces: minidiff export OUT FOLDER --kohya.
    """
    given = given_options(
        rank=rank, word=word, initial_word=initial_word, skip_bad=skip_bad or None, steps=steps,
        batch_size=batch_size, accumulate=accumulate, lr=lr, backend=backend, seed=seed, prior_weight=prior_weight,
    )  # fmt: skip
    if run is None and not resume:
        raise MinidiffError("RUN is missing: give a run of minidiff train --text, or a Stable Diffusion folder")
    if run is not None and resume:
        raise MinidiffError(f"--resume continues with the RUN and DATA of {out}: leave {run} out")
    if resume and (prior or prior_prompt):
        raise MinidiffError(
            f"--resume continues with the prior in {out / FOLDER}: leave --prior and --prior-prompt out"
        )
    with lock_run(out):
        if run is None:
            tuned, dataset = resumed(out, None, given, threads, KINDS[method])
        else:
            images = _prior(prior, prior_prompt)
            tuned, dataset = _start(method or "lora", run, out, required_data(out, data), given, images, threads)
        train_to_end(tuned, dataset, checkpoint_every, keep)


def _start(
    method: str, base: Path, out: Path, data: str, given: dict[str, Any], prior: Prior, threads: int | None
) -> tuple[Run, Dataset]:
    """The new run of a method. Raises MinidiffError for options that it has not, or lacks."""
    for name in given:
        if ONLY.get(name, method) != method:
            raise MinidiffError(f"--{name.replace('_', '-')} is for --method {ONLY[name]}: leave it out, or give that")
    if method == "lora":
        return start_lora(base, out, data, given, prior, threads)
    if method == "dreambooth":
        return start_dreambooth(base, out, data, given, prior, threads)
    if prior or "prior_weight" in given:
        raise MinidiffError("--method textual-inversion changes nothing but its word: leave the options of a prior out")
    for name, such in (("word", "'<robot>'"), ("initial_word", "robot")):
        if name not in given:
            option = f"--{name.replace('_', '-')}"
            raise MinidiffError(f"--method textual-inversion needs {option}: give one, such as {option} {such}")
    return start_textual_inversion(base, out, data, given, threads)


def _prior(place: Path | None, prompts: list[str] | None) -> Prior:
    """The dataset of --prior, or the prompts of its file and of --prior-prompt. Raises MinidiffError for both."""
    if place is None or place.is_file():
        return [*(prompts or []), *(read_prompts(place) if place else [])]
    if prompts:
        raise MinidiffError(f"--prior {place} has captions of its own: leave --prior-prompt out")
    return str(place)
