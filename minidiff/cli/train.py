"""The command that trains."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from minidiff.cli import options
from minidiff.data import Dataset
from minidiff.engine.optim import half_life
from minidiff.errors import MinidiffError
from minidiff.terminal import announce_compiling, console, progress_bar, shell_command, stderr_console
from minidiff.training import state
from minidiff.training.lock import lock_run
from minidiff.training.loop import fit, stoppable
from minidiff.training.resume import resume as resumed
from minidiff.training.run import Run
from minidiff.training.start import start_run, start_vae, validation_set
from minidiff.training.start_text import start_text
from minidiff.training.step import StepStats
from minidiff.training.text_run import TextRun
from minidiff.training.vae_run import VAERun

CHECKPOINT_EVERY, KEEP = 500, 2

LARGE = 10**9  # bytes of checkpoints from which they are announced


def train(
    out: options.RunFolder,
    data: options.Data = None,
    recipe: Annotated[str | None, typer.Option(help="small-cpu, small-gpu or ddpm; see above.")] = None,
    size: options.Size = None,
    skip_bad: options.SkipBad = False,
    pad_crop: options.PadCrop = None,
    no_flip: options.NoFlip = False,
    by_class: Annotated[bool, typer.Option("--by-class", help="Also learn to be asked for a class.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Learn to draw what the captions say.")] = False,
    latent: Annotated[Path | None, typer.Option(help="Draw latents of this autoencoder's run.")] = None,
    text_encoder: Annotated[Path | None, typer.Option(help="Hear with CLIP's of a folder, as it is.")] = None,
    objective: Annotated[str | None, typer.Option(help="See above.  [default: v_prediction]")] = None,
    min_snr: Annotated[float | None, typer.Option(help="Gamma of min-SNR weights, such as 5.")] = None,
    width: options.Width = None,
    depth: options.Depth = None,
    steps: options.InAll = None,
    batch_size: options.BatchSize = None,
    accumulate: options.Accumulate = None,
    lr: options.Rate = None,
    warmup: options.Warmup = None,
    decay: options.Decay = None,
    ema_half_life: options.EMA = None,
    backend: options.OfRun = None,
    threads: options.Threads = None,
    seed: options.SeedOfRun = None,
    checkpoint_every: options.Every = CHECKPOINT_EVERY,
    keep: options.Keep = KEEP,
    resume: options.Resume = False,
) -> None:
    """Train a noise predictor; the run's folder opens in minidiff and in diffusers.

    Recipes, which the options beside them change: small-cpu, an evening's worth on two cores; small-gpu, of nine
    million parameters; ddpm, as Ho et al. trained theirs. Each says how long it takes.

    Objectives, what it learns to predict: epsilon, the noise; sample, the picture; v_prediction, a mixture of both;
    edm, the same as Karras et al. weigh it; flow, the straight way from picture to noise.

    With --text it learns a tokenizer and a text encoder too; it draws pixels, or, with --latent, the latents of what
    train-vae made, and then the folder opens in diffusers' StableDiffusionPipeline.

    Beside the weights it holds metrics.csv, loss.png, and for every checkpoint a sheet of samples and a loss.
    """
    given = _given(
        recipe=recipe, size=size, skip_bad=skip_bad or None, pad_crop=pad_crop, flip=False if no_flip else None,
        objective=objective, min_snr=min_snr, width=width, depth=depth, steps=steps, batch_size=batch_size,
        accumulate=accumulate, lr=lr,
        warmup=warmup, decay=decay, ema=_ema(ema_half_life), backend=backend, seed=seed,
    )  # fmt: skip
    of_kind = _given(by_class=by_class or None, text=text or None, latent=latent, text_encoder=text_encoder)
    if not resume:
        _check_text(text, by_class, recipe, latent, text_encoder)
    with lock_run(out):
        if resume:
            run, dataset = resumed(out, data, given | of_kind, threads)
        elif text:
            run, dataset = start_text(out, _of_new_run(out, data), given, latent, text_encoder, threads)
        else:
            run, dataset = start_run(out, _of_new_run(out, data), given, by_class, threads)
        _go(run, dataset, checkpoint_every, keep)


def train_vae(
    out: options.RunFolder,
    data: options.Data = None,
    size: options.Size = None,
    skip_bad: options.SkipBad = False,
    pad_crop: options.PadCrop = None,
    no_flip: options.NoFlip = False,
    kl: Annotated[float | None, typer.Option(help="What the divergence counts.  [default: 0.0001]")] = None,
    width: options.Width = None,
    depth: options.Depth = None,
    steps: options.InAll = None,
    batch_size: options.BatchSize = None,
    accumulate: options.Accumulate = None,
    lr: options.Rate = None,
    warmup: options.Warmup = None,
    decay: options.Decay = None,
    ema_half_life: options.EMA = None,
    backend: options.OfRun = None,
    threads: options.Threads = None,
    seed: options.SeedOfRun = None,
    checkpoint_every: options.Every = CHECKPOINT_EVERY,
    keep: options.Keep = KEEP,
    resume: options.Resume = False,
) -> None:
    """Train an autoencoder, which makes pictures a quarter as large, for a diffusion among these.

    It learns to give back what it was shown (mean squared error), from latents that are drawn from a distribution
    close to the normal one. The run's folder holds vae/, which diffusers' AutoencoderKL opens, metrics.csv, loss.png,
    and for every checkpoint a sheet of pictures, each beside what came back, and in checkpoints.csv their error.
    """
    given = _given(
        size=size, skip_bad=skip_bad or None, pad_crop=pad_crop, flip=False if no_flip else None, kl=kl, width=width,
        depth=depth, steps=steps, batch_size=batch_size, accumulate=accumulate, lr=lr, warmup=warmup, decay=decay,
        ema=_ema(ema_half_life), backend=backend, seed=seed,
    )  # fmt: skip
    with lock_run(out):
        if resume:
            run, dataset = resumed(out, data, given, threads, VAERun)
        else:
            run, dataset = start_vae(out, _of_new_run(out, data), given, threads)
        _go(run, dataset, checkpoint_every, keep)


def _given(**choices: Any) -> dict[str, Any]:
    """The choices that were made."""
    return {name: value for name, value in choices.items() if value is not None}


def _of_new_run(out: Path, data: str | None) -> str:
    """The data of a run that is to begin. Raises MinidiffError if they are not given."""
    if data is None:
        raise MinidiffError(f"DATA is missing: give {options.DATA}; or --resume, to resume the run in {out}")
    return data


def _check_text(text: bool, by_class: bool, recipe: Any, latent: Any, text_encoder: Any) -> None:
    """Raises MinidiffError for options that do not go with one another."""
    if text and (by_class or recipe):
        raise MinidiffError(f"{'--by-class' if by_class else '--recipe'} is for networks without a text: leave it out")
    for option, value in (("--latent", latent), ("--text-encoder", text_encoder)):
        if value is not None and not text:
            raise MinidiffError(f"{option} is for runs with --text: add it, or leave {option} out")


def _go(run: Run, dataset: Dataset, checkpoint_every: int, keep: int) -> None:
    """Train to the end, if anything is left to do, and say so."""
    if run.step == run.config.steps:
        console.print(f"{run.folder}: all {run.step} steps are done already; to go on, give a larger --steps")
        return
    chosen = {"--checkpoint-every": (checkpoint_every, CHECKPOINT_EVERY), "--keep": (keep, KEEP)}
    more = [word for option, (value, usual) in chosen.items() if value != usual for word in (option, str(value))]
    go_on = ["minidiff", "train", "--out", str(run.folder), "--resume", *more]
    train_with_bar(run, dataset, checkpoint_every, go_on, keep, validation_set(run, dataset))
    console.print(f"Done: step {run.step}. {_result(run, dataset)}")


def _result(run: Run, dataset: Dataset) -> str:
    """Where the result of a run is, or the command that shows it."""
    if isinstance(run, VAERun):
        return f"The autoencoder: {run.folder / 'vae'}"
    prompt = ["--prompt", dataset.captions[0]] if isinstance(run, TextRun) else []
    return f"Samples: {shell_command(['minidiff', 'sample', str(run.folder), *prompt])}"


def _ema(steps: float | None) -> float | None:
    """The decay of that half-life, if one is given."""
    if steps is not None and not 0.1 <= steps <= 1e9:
        raise MinidiffError(f"--ema-half-life {steps:g}: give 0.1 to 1e9 steps")
    return None if steps is None else half_life(steps)


def train_with_bar(
    run: Run, dataset: Dataset, checkpoint_every: int, go_on: list[str], keep: int = 2, probed: Dataset | None = None
) -> None:
    """Train to the end with a bar; Ctrl-C saves, says how to resume by the command `go_on`, and leaves with 130.

    A second Ctrl-C, which does not save, says what is lost.
    """
    name = run.NAME[0].upper() + run.NAME[1:]
    console.print(f"{name}: {run.optimizer.p.size / 1e6:.1f} million parameters; threads: {run.config.threads}")
    if (needed := state.check_disk_space(run, min(keep, run.config.steps // checkpoint_every + 2))) > LARGE:
        console.print(f"Checkpoints take up to {needed / 1e9:.1f} GB of disk.")
    announce_compiling(run.config.backend)
    notice = "Stopping after this step; Ctrl-C again breaks off."
    with _told_what_is_lost(run, go_on), progress_bar() as bar, stoppable(lambda: bar.console.print(notice)) as stop:
        task = bar.add_task("training", total=run.config.steps, completed=run.step, note="")
        loss = math.nan  # a running mean

        def on_step(stats: StepStats) -> None:
            nonlocal loss
            if not math.isfinite(stats.grad_norm):
                bar.console.print(f"step {stats.step}: skipped, for its gradient is not finite (loss {stats.loss})")
            elif math.isfinite(stats.loss):
                loss = stats.loss if math.isnan(loss) else 0.95 * loss + 0.05 * stats.loss
            speed = (bar.tasks[task].speed or 0) * run.config.batch_size
            bar.update(task, advance=1, note=f"loss {loss:.4f}" + (f", {speed:.0f} images/s" if speed else ""))

        def on_checkpoint(step: int, measured: float) -> None:
            where = run.folder / "samples"
            bar.console.print(f"step {step}: loss {loss:.4f}, {run.describe_validation(measured)}; saved, see {where}")

        fit(run, dataset, checkpoint_every, on_step, on_checkpoint, stop, keep, probed)
    if run.step < run.config.steps:
        console.print(f"Saved at step {run.step}. To go on: {shell_command(go_on)}")
        sys.exit(130)


@contextmanager
def _told_what_is_lost(run: Run, go_on: list[str]) -> Iterator[None]:
    """Where training is broken off within this block: one line on stderr, and 130."""
    try:
        yield
    except KeyboardInterrupt:
        lost = run.step - (saved := state.last_step(run.folder))
        steps = f"{lost} step{'' if lost == 1 else 's'} since the checkpoint of step {saved}"
        stderr_console.print(f"minidiff: stopped; lost: {steps}. To resume: {shell_command(go_on)}")
        sys.exit(130)
