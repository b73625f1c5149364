"""The command that trains."""

import math
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from minidiff import options
from minidiff.data import Dataset
from minidiff.engine.optim import half_life
from minidiff.errors import MinidiffError
from minidiff.runs import state
from minidiff.runs.begin import held_out, resume_run, resume_vae, start_run, start_vae
from minidiff.runs.begin_text import resume_text, start_text
from minidiff.runs.fit import fit, stoppable
from minidiff.runs.run import Run
from minidiff.runs.terminal import announce_compiling, bar_of, console
from minidiff.runs.train import StepStats


def train(
    data: options.Data,
    out: options.RunFolder,
    recipe: Annotated[str | None, typer.Option(help="small-cpu, small-gpu or ddpm; see above.")] = None,
    size: options.Size = None,
    skip_bad: options.SkipBad = False,
    pad_crop: options.PadCrop = None,
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
    checkpoint_every: options.Every = 500,
    keep: options.Keep = 2,
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
        recipe=recipe, size=size, skip_bad=skip_bad or None, pad_crop=pad_crop, objective=objective,
        min_snr=min_snr, width=width, depth=depth, steps=steps, batch_size=batch_size, accumulate=accumulate, lr=lr,
        warmup=warmup, decay=decay, ema=_ema(ema_half_life), backend=backend, seed=seed,
    )  # fmt: skip
    _check_text(text, resume, by_class, recipe, latent, text_encoder)
    with state.only_one(out):
        if not text:
            run, dataset = (resume_run if resume else start_run)(out, data, given, by_class, threads)
        elif resume:
            run, dataset = resume_text(out, data, given, threads)
        else:
            run, dataset = start_text(out, data, given, latent, text_encoder, threads)
        prompt = ["--prompt", dataset.captions[0]] if text else []
        done = f"Samples: {shlex.join(['minidiff', 'sample', str(out), *prompt])}"
        _go(run, dataset, ["train", data, *(["--text"] if text else [])], checkpoint_every, keep, done)


def train_vae(
    data: options.Data,
    out: options.RunFolder,
    size: options.Size = None,
    skip_bad: options.SkipBad = False,
    pad_crop: options.PadCrop = None,
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
    checkpoint_every: options.Every = 500,
    keep: options.Keep = 2,
    resume: options.Resume = False,
) -> None:
    """Train an autoencoder, which makes pictures a quarter as large, for a diffusion among these.

    It learns to give back what it was shown (mean squared error), from latents that are drawn from a distribution
    close to the normal one. The run's folder holds vae/, which diffusers' AutoencoderKL opens, metrics.csv, loss.png,
    and for every checkpoint a sheet of pictures, each beside what came back, and in checkpoints.csv their error.
    """
    given = _given(
        size=size, skip_bad=skip_bad or None, pad_crop=pad_crop, kl=kl, width=width, depth=depth, steps=steps,
        batch_size=batch_size, accumulate=accumulate, lr=lr, warmup=warmup, decay=decay, ema=_ema(ema_half_life),
        backend=backend, seed=seed,
    )  # fmt: skip
    with state.only_one(out):
        run, dataset = (resume_vae if resume else start_vae)(out, data, given, threads)
        _go(run, dataset, ["train-vae", data], checkpoint_every, keep, f"The autoencoder: {out / 'vae'}")


def _given(**choices: Any) -> dict[str, Any]:
    """The choices that were made."""
    return {name: value for name, value in choices.items() if value is not None}


def _check_text(text: bool, resume: bool, by_class: bool, recipe: Any, latent: Any, text_encoder: Any) -> None:
    """Raises MinidiffError for options that do not go with one another."""
    if text and (by_class or recipe):
        raise MinidiffError(f"{'--by-class' if by_class else '--recipe'} is for networks without a text: leave it out")
    for option, value in (("--latent", latent), ("--text-encoder", text_encoder)):
        if value is not None and (resume or not text):
            raise MinidiffError(f"{option} is for new runs with --text: leave it out")


def _go(run: Run, dataset: Dataset, command: list[str], checkpoint_every: int, keep: int, done: str) -> None:
    """Train to the end, if anything is left to do, and say so."""
    if run.step == run.config.steps:
        console.print(f"{run.folder}: all {run.step} steps are done already; to go on, give a larger --steps")
        return
    go_on = ["minidiff", *command, "--out", str(run.folder), "--resume"]
    train_with_bar(run, dataset, checkpoint_every, go_on, keep, held_out(run, dataset))
    console.print(f"Done: step {run.step}. {done}")


def _ema(steps: float | None) -> float | None:
    """The decay of that half-life, if one is given."""
    if steps is not None and not 0.1 <= steps <= 1e9:
        raise MinidiffError(f"--ema-half-life {steps:g}: give 0.1 to 1e9 steps")
    return None if steps is None else half_life(steps)


def train_with_bar(
    run: Run, dataset: Dataset, checkpoint_every: int, go_on: list[str], keep: int = 2, probed: Dataset | None = None
) -> None:
    """Train to the end with a bar; Ctrl-C saves, says how to go on, and leaves with 130."""
    name = run.NAME[0].upper() + run.NAME[1:]
    console.print(f"{name}: {run.optimizer.p.size / 1e6:.1f} million parameters; threads: {run.config.threads}")
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
            bar.update(task, advance=1, note=f"loss {loss:.4f}" + (f", {speed:.0f} images/s" if speed else ""))

        def on_checkpoint(step: int, measured: float) -> None:
            where = run.folder / "samples"
            bar.console.print(f"step {step}: loss {loss:.4f}, {run.verdict(measured)}; saved, see {where}")

        fit(run, dataset, checkpoint_every, on_step, on_checkpoint, stop, keep, probed)
    if run.step < run.config.steps:
        console.print(f"Saved at step {run.step}. To go on: {shlex.join(go_on)}")
        sys.exit(130)
