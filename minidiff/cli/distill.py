"""The command that makes a consistency model of a diffusion model."""

from pathlib import Path
from typing import Annotated

import typer

from minidiff.cli import options
from minidiff.cli.train import given_options, train_to_end
from minidiff.cli.training_bar import CHECKPOINT_EVERY, KEEP
from minidiff.errors import MinidiffError
from minidiff.formats.run_lock import lock_run
from minidiff.training.resume import resume as resumed
from minidiff.training.start_tuning import start_distillation


def distill(
    out: options.RunFolder,
    run: Annotated[
        Path | None,
        typer.Argument(help="A run of train on images, or a diffusers folder. Not with --resume."),
    ] = None,
    data: Annotated[
        str | None, typer.Argument(help="The images that it was trained on.  [default: those of the run]")
    ] = None,
    steps: options.TotalSteps = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.  [default: the run's, or 32]")] = None,
    accumulate: options.Accumulate = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate.  [default: 0.001]")] = None,
    backend: options.TrainingBackend = None,
    threads: options.Threads = None,
    seed: options.TrainingSeed = None,
    checkpoint_every: options.CheckpointEvery = CHECKPOINT_EVERY,
    keep: options.Keep = KEEP,
    resume: options.Resume = False,
) -> None:
    """Make a model that samples in one to four steps: easy consistency tuning (Geng et al. 2024).

    The new run starts from the averaged weights of RUN, which stays as it is, and keeps its classes or prompts. Of a
    model with prompts the U-Net alone is trained. --out holds the same files as a run of train.

    To sample: minidiff sample OUT; it takes 2 steps unless --steps says otherwise.
    """
    given = given_options(steps=steps, batch_size=batch_size, accumulate=accumulate, lr=lr, backend=backend, seed=seed)
    if run is None and not resume:
        raise MinidiffError("RUN is missing: give a run of minidiff train, or a diffusers folder")
    if run is not None and resume:
        raise MinidiffError(f"--resume continues with the RUN and DATA of {out}: leave {run} out")
    with lock_run(out):
        if run is None:
            tuned, dataset = resumed(out, None, given, threads)
            if tuned.config.consistency is None:
                raise MinidiffError(f"{out}: is no run of minidiff distill; resume it with minidiff train")
        else:
            tuned, dataset = start_distillation(run, out, data, given, threads)
        train_to_end(tuned, dataset, checkpoint_every, keep)
