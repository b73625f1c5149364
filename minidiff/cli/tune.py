"""The command that trains a LoRA: low-rank updates of a model that takes prompts."""

from pathlib import Path
from typing import Annotated

import typer

from minidiff.cli import options
from minidiff.cli.train import given_options, required_data, train_to_end
from minidiff.cli.training_bar import CHECKPOINT_EVERY, KEEP
from minidiff.data.prompt_file import read_prompts
from minidiff.errors import MinidiffError
from minidiff.formats.run_lock import lock_run
from minidiff.training.kinds.lora_run import LoRARun
from minidiff.training.prior import FOLDER
from minidiff.training.resume import resume as resumed
from minidiff.training.start_tuning import Prior, start_lora


def tune(
    out: options.RunFolder,
    run: Annotated[
        Path | None,
        typer.Argument(help="A run of train --text, or a Stable Diffusion folder. Not with --resume."),
    ] = None,
    data: Annotated[str | None, typer.Argument(help="A folder of images with captions. Not with --resume.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the updates.  [default: 4]")] = None,
    prior: Annotated[
        Path | None,
        typer.Option(help="Images to keep: a folder with captions, or a file of prompts, of which the model samples."),
    ] = None,
    prior_prompt: Annotated[
        list[str] | None,
        typer.Option(callback=options.valid_text, help="A prompt whose samples to keep; may be repeated."),
    ] = None,
    prior_weight: Annotated[
        float | None, typer.Option(help="Weight of the images to keep in the loss.  [default: 1]")
    ] = None,
    skip_bad: options.SkipBad = False,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Total number of training steps.  [default: 400]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.  [default: 4]")] = None,
    accumulate: options.Accumulate = None,
    lr: options.LearningRate = None,
    backend: options.TrainingBackend = None,
    threads: options.Threads = None,
    seed: options.TrainingSeed = None,
    checkpoint_every: options.CheckpointEvery = CHECKPOINT_EVERY,
    keep: options.Keep = KEEP,
    resume: options.Resume = False,
) -> None:
    """Train a LoRA: low-rank updates that teach a text-conditional model new images.

    The model in RUN stays as it is; trained are updates of the attention projections of its U-Net and text encoder.
    Images in a folder are cropped and resized to the model's size; captions.csv or metadata.jsonl has their captions.
    --out holds pytorch_lora_weights.safetensors, which diffusers' load_lora_weights opens, metrics.csv, loss.png, and
    for every checkpoint a grid of samples and a validation loss (checkpoints.csv).

    To sample: minidiff sample RUN --lora OUT --prompt TEXT. For web interfaces: minidiff export OUT FOLDER --kohya.
    """
    given = given_options(
        rank=rank, skip_bad=skip_bad or None, steps=steps, batch_size=batch_size, accumulate=accumulate, lr=lr,
        backend=backend, seed=seed, prior_weight=prior_weight,
    )  # fmt: skip
    if run is None and not resume:
        raise MinidiffError("RUN is missing: give a run of minidiff train --text, or a Stable Diffusion folder")
    if run is not None and resume:
        raise MinidiffError(f"--resume continues with the RUN and DATA of {out}: leave {run} out")
    if resume and (prior or prior_prompt):
        raise MinidiffError(
            f"--resume continues with the images in {out / FOLDER}: leave --prior and --prior-prompt out"
        )
    with lock_run(out):
        if run is None:
            lora, dataset = resumed(out, None, given, threads, LoRARun)
        else:
            lora, dataset = start_lora(run, out, required_data(out, data), given, _prior(prior, prior_prompt), threads)
        train_to_end(lora, dataset, checkpoint_every, keep)


def _prior(place: Path | None, prompts: list[str] | None) -> Prior:
    """The dataset of --prior, or the prompts of its file and of --prior-prompt. Raises MinidiffError for both."""
    if place is None or place.is_file():
        return [*(prompts or []), *(read_prompts(place) if place else [])]
    if prompts:
        raise MinidiffError(f"--prior {place} has captions of its own: leave --prior-prompt out")
    return str(place)
