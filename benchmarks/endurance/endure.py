"""A long training that is killed at random moments, with copies on the way: `make endurance ARGS="DATA OUT"`.

Starts `minidiff train DATA --out OUT --recipe RECIPE`, sends it SIGKILL after a random time, resumes it, and so on to
the end. At every step of --at the run's folder is copied, for measurements later. Then stretches of it are trained
again, from a copy, without a kill, and their lines of metrics.csv compared byte by byte.

Time is counted as the processor time of all threads, so that other work beside it, or a pause, does not count, and
what is done twice after a kill does. A life that ends before its first checkpoint leads nowhere.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

STRETCH = 300  # steps that are trained again behind each copy


def rows(run: Path) -> list[str]:
    """The lines of a run's log, one a step."""
    log = run / "metrics.csv"
    return log.read_text(encoding="ascii").splitlines()[1:] if log.is_file() else []


def start(data: str, run: Path, options: list[str]) -> subprocess.Popen:
    """Begin a run, or go on with it, in a process of its own."""
    go_on = ["--resume"] if (run / "training" / "state.safetensors").is_file() else []
    command = [sys.executable, "-m", "minidiff", "train", data, "--out", str(run), *options, *go_on]
    with open(run.with_name(run.name + ".out"), "a") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)


def live(child: subprocess.Popen, seconds: float, enough) -> tuple[int, float]:
    """Let it train until it ends, `enough()` or so many seconds, then kill it: exit code, processor seconds."""
    end = time.monotonic() + seconds
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if not pid and (time.monotonic() > end or enough()):
            os.kill(child.pid, signal.SIGKILL)
            pid, status, usage = os.wait4(child.pid, 0)
        if pid:
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        time.sleep(0.5)


def endure(data: str, run: Path, options: list[str], at: list[int], life: tuple[float, float], seed: int) -> None:
    """Train to the last step of `at`, killed again and again; copies of the run stay beside it."""
    rng, spent = random.Random(seed), 0.0
    for target in at:
        sheet = run / "samples" / f"step-{target:06d}.png"  # is drawn when the checkpoint is whole
        while not sheet.is_file():
            code, seconds = live(start(data, run, options), rng.uniform(*life), sheet.is_file)
            spent += seconds
            print(f"{spent / 60:7.1f} processor minutes: step {len(rows(run))}, exit {code}", flush=True)
            if code not in (0, -signal.SIGKILL):
                sys.exit(f"{run}.out tells what went wrong")
        shutil.copytree(run, run.with_name(f"{run.name}-{target}"), dirs_exist_ok=True)


def compare(data: str, run: Path, options: list[str], at: list[int]) -> None:
    """Train STRETCH steps behind every copy but the last without a kill, and compare."""
    for target in at[:-1]:
        again = run.with_name(f"{run.name}-{target}-again")
        shutil.copytree(run.with_name(f"{run.name}-{target}"), again, dirs_exist_ok=True)
        live(start(data, again, options), float("inf"), lambda again=again, to=target: len(rows(again)) > to + STRETCH)
        end = min(target + STRETCH, at[-1])
        same = rows(again)[target:end] == rows(run)[target:end]
        print(f"steps {target + 1} to {end}, never killed: {'the same' if same else 'DIFFERENT'}")
        shutil.rmtree(again)


def main(
    data: Annotated[str, typer.Argument(help="As minidiff train takes it.")],
    out: Annotated[Path, typer.Argument(help="The run's folder; copies come beside it.")],
    recipe: Annotated[str, typer.Option(help="Of minidiff train.")] = "small-cpu",
    at: Annotated[list[int] | None, typer.Option(help="Steps to copy the run at.  [default: 3500 7000 10500]")] = None,
    every: Annotated[int, typer.Option(help="Steps between checkpoints, of which --at are multiples.")] = 250,
    shortest: Annotated[float, typer.Option(help="Seconds of the shortest life.")] = 300,
    longest: Annotated[float, typer.Option(help="And of the longest.")] = 1500,
    seed: Annotated[int, typer.Option(help="Decides when it is killed.")] = 0,
) -> None:
    """Train with SIGKILL at random moments."""
    at = sorted(at or [3500, 7000, 10500])
    if any(step % every for step in at):
        sys.exit(f"--at {at}: give multiples of --every {every}")
    options = ["--recipe", recipe, "--steps", str(at[-1]), "--checkpoint-every", str(every)]
    endure(data, out, options, at, (shortest, longest), seed)
    compare(data, out, options, at)


if __name__ == "__main__":
    typer.run(main)
