"""The command that trains the demo's network and writes its page."""

import time
from pathlib import Path

from minidiff import machine
from minidiff.cli import demo_pages
from minidiff.cli.options import Out, Seed, Threads
from minidiff.cli.training_bar import train_with_bar
from minidiff.formats.run_lock import lock_run
from minidiff.terminal import console, with_progress_bar


def demo(out: Out = Path("demo"), threads: Threads = None, seed: Seed = 0) -> None:
    """Train a class-conditional model on the built-in cats and dogs, sample it, and write a page of the results.

    Takes a few minutes. OUT/index.html shows forward diffusion, the loss, and samples with classifier-free guidance;
    OUT/run is an ordinary run. After Ctrl-C the same command resumes training; once trained, it only samples the
    images again. Another --seed needs another --out.
    """
    started = time.monotonic()
    with lock_run(out), lock_run(out / "run"):  # `train --out OUT/run` is excluded too
        run, dataset = demo_pages.open_demo(out, machine.use_threads(threads, "numba"), seed)
        if run.step < run.config.steps:
            resume_command = ["minidiff", "demo", "--out", str(out), "--seed", str(seed)]
            train_with_bar(run, dataset, demo_pages.CHECKPOINT_EVERY, resume_command)
        else:
            console.print(f"{run.folder}: all {run.step} steps are done already; only the images are sampled again")
        with_progress_bar("sampling", demo_pages.TICKS, lambda tick: demo_pages.write_pages(run, dataset, out, tick))
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    console.print(f"Done in {minutes} min {seconds} s. Open {out / 'index.html'}")
