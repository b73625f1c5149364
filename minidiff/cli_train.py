"""The command that trains."""

import math
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from minidiff.data import Dataset
from minidiff.engine.optim import half_life
from minidiff.errors import MinidiffError
from minidiff.options import Threads
from minidiff.runs import state
from minidiff.runs.begin import held_out, resume_run, start_run
from minidiff.runs.fit import fit, stoppable
from minidiff.runs.state import Run
from minidiff.runs.terminal import announce_compiling, bar_of, console
from minidiff.runs.train import StepStats


def train(
    data: Annotated[str, typer.Argument(help="cats_dogs, cifar10, or a path: IDX, CIFAR-10, a folder.")],
    out: Annotated[Path, typer.Option(help="The run's folder.")],
    recipe: Annotated[str | None, typer.Option(help="small-cpu, small-gpu or ddpm; see above.")] = None,
    size: Annotated[int | None, typer.Option(help="Cut a folder's pictures to this side.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out what cannot be read.")] = False,
    pad_crop: Annotated[int | None, typer.Option(help="Shift pictures by up to so many pixels.")] = None,
    by_class: Annotated[bool, typer.Option("--by-class", help="Also learn to be asked for a class.")] = False,
    objective: Annotated[str | None, typer.Option(help="See above.  [default: v_prediction]")] = None,
    min_snr: Annotated[float | None, typer.Option(help="Gamma of min-SNR weights, such as 5.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps in all, not more.  [default: 2000]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures a step.  [default: 32]")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Parts of a batch, one at a time.  [default: 1]")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.  [default: 0.001]")] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps in which it rises.  [default: 50]")] = None,
    decay: Annotated[str | None, typer.Option(help="How it falls: cosine, none.  [default: cosine]")] = None,
    ema_half_life: Annotated[float | None, typer.Option(help="Of the average, in steps.  [default: 138]")] = None,
    backend: Annotated[str | None, typer.Option(help="numba, or numpy, the reference.  [default: numba]")] = None,
    threads: Threads = None,
    seed: Annotated[int | None, typer.Option(help="Decides weights, order and noise.  [default: 0]")] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1, metavar="<int>")] = 500,
    keep: Annotated[int, typer.Option(help="Checkpoints that stay.", min=1, metavar="<int>")] = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
) -> None:
    """Train a noise predictor; the run's folder opens in minidiff and in diffusers.

    Recipes, which the options beside them change: small-cpu, an evening's worth on two cores; small-gpu, of nine
    million parameters; ddpm, as Ho et al. trained theirs. Each says how long it takes.

    Objectives, what it learns to predict: epsilon, the noise; sample, the picture; v_prediction, a mixture of both;
    edm, the same as Karras et al. weigh it; flow, the straight way from picture to noise.

    Beside the weights it holds metrics.csv, loss.png, and for every checkpoint a sheet of samples and a loss.
    """
    given = {
        "recipe": recipe, "size": size, "skip_bad": skip_bad or None, "pad_crop": pad_crop, "objective": objective,
        "min_snr": min_snr, "steps": steps, "batch_size": batch_size, "accumulate": accumulate, "lr": lr,
        "warmup": warmup, "decay": decay, "ema": _ema(ema_half_life), "backend": backend, "seed": seed,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    with state.only_one(out):
        run, dataset = (resume_run if resume else start_run)(out, data, given, by_class, threads)
        if run.step == run.config.steps:
            console.print(f"{out}: all {run.step} steps are done already; to go on, give a larger --steps")
        else:
            go_on = ["minidiff", "train", data, "--out", str(out), "--resume"]
            train_with_bar(run, dataset, checkpoint_every, go_on, keep, held_out(run, dataset))
            console.print(f"Done: step {run.step}. Samples: {shlex.join(['minidiff', 'sample', str(out)])}")


def _ema(steps: float | None) -> float | None:
    """The decay of that half-life, if one is given."""
    if steps is not None and not 0.1 <= steps <= 1e9:
        raise MinidiffError(f"--ema-half-life {steps:g}: give 0.1 to 1e9 steps")
    return None if steps is None else half_life(steps)


def train_with_bar(
    run: Run, dataset: Dataset, checkpoint_every: int, go_on: list[str], keep: int = 2, probed: Dataset | None = None
) -> None:
    """Train to the end with a bar; Ctrl-C saves, says how to go on, and leaves with 130."""
    parameters = sum(p.data.size for p in run.unet.parameters())
    console.print(f"U-Net: {parameters / 1e6:.1f} million parameters; threads: {run.config.threads}")
    announce_compiling(run.config.backend)
    notice = "Stopping after this step; Ctrl-C again breaks off."
    with bar_of() as bar, stoppable(lambda: bar.console.print(notice)) as stop:
        task = bar.add_task("training", total=run.config.steps, completed=run.step, note="")
        loss = math.nan  # a running mean

        def on_step(stats: StepStats) -> None:
            nonlocal loss
            if not math.isfinite(stats.grad_norm):
                bar.console.print(f"step {stats.step}: skipped, for its gradient is not finite (loss {stats.loss})")
            elif math.isfinite(stats.loss):
                loss = stats.loss if math.isnan(loss) else 0.95 * loss + 0.05 * stats.loss
            speed = (bar.tasks[task].speed or 0) * run.config.batch_size
            bar.update(task, advance=1, note=f"loss {loss:.4f}, {speed:.0f} images/s")

        def on_checkpoint(step: int, measured: float) -> None:
            where = run.folder / "samples"
            bar.console.print(f"step {step}: loss {loss:.4f}, of the average {measured:.4f}; saved, see {where}")

        fit(run, dataset, checkpoint_every, on_step, on_checkpoint, stop, keep, probed)
    if run.step < run.config.steps:
        console.print(f"Saved at step {run.step}. To go on: {shlex.join(go_on)}")
        sys.exit(130)
