"""The pace of a recipe: the reference minutes of one of its training steps, measured on two idle cores.

    python benchmarks/speedrun/pace.py DATA --recipe small-cpu

trains for half a reference minute, after a start that does not count, and appends a line to paces.jsonl. A run of
a fixed number of steps (speedrun.py --steps) may then share its cores with other programs: its minutes are its steps
times the pace.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from clock import REFERENCE_RATE
from records import PACES, append
from speedrun import commit, open_clock, open_track_run, spread, train
from splits import open_splits

from minidiff import machine
from minidiff.errors import MinidiffError
from minidiff.training.dry_run import compile_for_training

THREADS = 2
START = 0.1  # minutes: the first steps load the kernels and fill the pool of memory


def main(
    data: Annotated[str, typer.Argument(help="CIFAR-10's training set, as for speedrun.py.")],
    recipe: Annotated[list[str], typer.Option(help="Recipe or candidate; several are measured in turn.")],
    minutes: Annotated[float, typer.Option(help="Reference minutes of training for each.")] = 0.5,
    paces: Annotated[Path, typer.Option(help="File that the paces are appended to.")] = PACES,
) -> None:
    """Measure the reference minutes of a training step on idle cores."""
    machine.use_threads(THREADS, "numba")
    dataset = open_splits(data).train
    for name in recipe:
        with TemporaryDirectory() as folder:
            run = open_track_run(Path(folder) / "run", name, data, dataset, 0, THREADS)
            compile_for_training(run, dataset)
            train(run, dataset, open_clock(run, THREADS), START)
            clock, first = open_clock(run, THREADS), run.step
            began = clock.minutes
            train(run, dataset, clock, began + minutes)
        steps, rates = run.step - first, spread(clock.rates)
        each = (clock.minutes - began) / steps
        row = {
            "recipe": name,
            "minutes": round(each, 6),
            "ms": round(each * 60_000 * REFERENCE_RATE / 1e9 / rates[1], 1),
            "gflops": rates,
            "steps": steps,
            "threads": THREADS,
            "processor": machine.describe()["processor"],
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d"),
        }
        append(paces, row)
        print(row)


if __name__ == "__main__":
    try:
        typer.run(main)
    except MinidiffError as error:
        print(f"minidiff: {error}", file=sys.stderr)
        sys.exit(2)
