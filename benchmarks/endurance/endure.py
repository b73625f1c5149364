"""A long training run killed at random times and resumed: `make endurance ARGS="DATA OUT"`.

Starts `minidiff train DATA --out OUT --recipe RECIPE`, sends it SIGKILL after a random time, resumes it, and so on
until the last step. At every step of --at the run's folder is copied, for measurements later. Then intervals are
trained again from a copy without a kill, and their lines of metrics.csv are compared byte by byte.

Time is the CPU time of all threads, so other load and pauses do not count, but steps repeated after a kill do. A
process killed before its first checkpoint makes no progress.
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

REPEATED_STEPS = 300  # trained again after each copy


def rows(run: Path) -> list[str]:
    """The lines of a run's metrics.csv, one per step."""
    log = run / "metrics.csv"
    return log.read_text(encoding="ascii").splitlines()[1:] if log.is_file() else []


def start(data: str, run: Path, options: list[str]) -> subprocess.Popen:
    """Start or resume a run in a new process."""
    resume = ["--resume"] if (run / "training" / "state.safetensors").is_file() else []
    command = [sys.executable, "-m", "minidiff", "train", data, "--out", str(run), *options, *resume]
    with open(run.with_name(run.name + ".out"), "a") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)


def run_until(child: subprocess.Popen, seconds: float, done) -> tuple[int, float]:
    """Wait until the process ends; kill it after so many seconds or when `done()`. Returns exit code, CPU seconds."""
    end = time.monotonic() + seconds
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if not pid and (time.monotonic() > end or done()):
            os.kill(child.pid, signal.SIGKILL)
            pid, status, usage = os.wait4(child.pid, 0)
        if pid:
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        time.sleep(0.5)


def endure(data: str, run: Path, options: list[str], at: list[int], lifetime: tuple[float, float], seed: int) -> None:
    """Train to the last step of `at`, with repeated kills; copies of the run stay beside it."""
    rng = random.Random(seed)
    spent = 0.0
    for target in at:
        sheet = run / "samples" / f"step-{target:06d}.png"  # written after the checkpoint is complete
        while not sheet.is_file():
            code, seconds = run_until(start(data, run, options), rng.uniform(*lifetime), sheet.is_file)
            spent += seconds
            print(f"{spent / 60:7.1f} CPU minutes: step {len(rows(run))}, exit {code}", flush=True)
            if code not in (0, -signal.SIGKILL):
                sys.exit(f"training failed: see {run}.out")
        shutil.copytree(run, run.with_name(f"{run.name}-{target}"), dirs_exist_ok=True)


def compare(data: str, run: Path, options: list[str], at: list[int]) -> None:
    """Train REPEATED_STEPS steps from every copy but the last without a kill, and compare."""
    for target in at[:-1]:
        again = run.with_name(f"{run.name}-{target}-again")
        shutil.copytree(run.with_name(f"{run.name}-{target}"), again, dirs_exist_ok=True)
        end = min(target + REPEATED_STEPS, at[-1])
        enough = target + REPEATED_STEPS
        run_until(start(data, again, options), float("inf"), lambda again=again, n=enough: len(rows(again)) > n)
        same = rows(again)[target:end] == rows(run)[target:end]
        print(f"steps {target + 1} to {end}, never killed: {'identical' if same else 'DIFFERENT'}")
        shutil.rmtree(again)


def main(
    data: Annotated[str, typer.Argument(help="Dataset, as for minidiff train.")],
    out: Annotated[Path, typer.Argument(help="The run's folder; copies are made beside it.")],
    recipe: Annotated[str, typer.Option(help="Recipe of minidiff train.")] = "small-cpu",
    at: Annotated[
        list[int] | None, typer.Option(help="Steps at which the run is copied.  [default: 3500 7000 10500]")
    ] = None,
    every: Annotated[int, typer.Option(help="Steps between checkpoints; --at must be multiples.")] = 250,
    shortest: Annotated[float, typer.Option(help="Shortest time until a kill, in seconds.")] = 300,
    longest: Annotated[float, typer.Option(help="Longest time until a kill, in seconds.")] = 1500,
    seed: Annotated[int, typer.Option(help="Seed of the kill times.")] = 0,
) -> None:
    """Train with SIGKILL at random times."""
    at = sorted(at or [3500, 7000, 10500])
    if any(step % every for step in at):
        sys.exit(f"--at {at}: give multiples of --every {every}")
    options = ["--recipe", recipe, "--steps", str(at[-1]), "--checkpoint-every", str(every)]
    endure(data, out, options, at, (shortest, longest), seed)
    compare(data, out, options, at)


if __name__ == "__main__":
    typer.run(main)
