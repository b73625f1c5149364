"""Peak memory of a training step, ours and PyTorch's, each in a process of its own.

    python -m minidiff.bench.memory SIDE LABEL BATCH THREADS

prints the MB of SIDE, "ours" or a mode of rival.py, for the training step whose label starts with LABEL. What libraries
and compiled code take does not count: a step of one image runs first and is freed, and what the process then holds is
subtracted from the peak of three steps. Only anonymous memory counts, not files that are mapped.
"""

import ctypes
import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minidiff_kernels.cpu.memory import pool
from rich.table import Table

from minidiff import machine
from minidiff.bench import cases, ours
from minidiff.engine.backend import get_backend
from minidiff.errors import MinidiffError

STATUS = Path("/proc/self/status")
SIDES = ("ours", "NCHW", "channels_last")


def table(chosen: list[cases.Case], threads: int | None) -> Table:
    """The peaks of the training steps among the cases, and ours relative to PyTorch's smaller one.

    Raises MinidiffError if there is none, or no /proc, or if a process fails.
    """
    chosen = [case for case in chosen if case.op == "training_step"]
    if not chosen or not STATUS.exists():
        raise MinidiffError("--memory measures training steps, on Linux: minidiff bench step --memory")
    table = Table(title="peak memory, MB", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for i, column in enumerate(("", *SIDES, "ratio")):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for case in chosen:
        peaks = [_in_a_process(side, case, machine.use_threads(threads, "numba")) for side in SIDES]
        table.add_row(case.label, *(f"{peak:.0f}" for peak in peaks), f"{peaks[0] / min(peaks[1:]):.2f}")
    return table


def _in_a_process(side: str, case: cases.Case, threads: int) -> float:
    name, batch = case.label.split(", batch ")
    command = [sys.executable, "-m", __name__, side, name, batch, str(threads)]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        raise MinidiffError(f"the process of {side} ended: {child.stderr.strip().splitlines()[-1:]}")
    return float(child.stdout.split()[-1])


def peak(case: cases.Case, prepare: Callable[..., Callable[[], Any]]) -> float:
    """MB of anonymous memory at the peak of three steps, less what is held after a step of one image."""
    inputs = case.inputs()
    prepare(case.op, {name: a[:1] for name, a in inputs.items()}, case.settings)()
    gc.collect()
    pool.clear()
    ctypes.CDLL(None).malloc_trim(0)
    before = _kilobytes("RssAnon")
    run = prepare(case.op, inputs, case.settings)
    for _ in range(3):
        run()
    return (_kilobytes("VmHWM") - _kilobytes("RssFile") - _kilobytes("RssShmem") - before) / 1024


def _kilobytes(key: str) -> int:
    lines = (line.split() for line in STATUS.read_text().splitlines())
    return next(int(words[1]) for words in lines if words[0] == f"{key}:")


def main(side: str, label: str, batch: str, threads: str) -> None:
    """Print the peak of one side."""
    case = next(case for case in cases.step(int(batch)) if case.label.startswith(label))
    if side == "ours":
        machine.use_threads(int(threads), "numba")
        print(peak(case, lambda *args: ours.prepare(get_backend("numba"), *args)))
    else:
        from minidiff.bench import rival

        rival.set_up(int(threads))
        print(peak(case, lambda *args: rival.prepare(side, *args)))


if __name__ == "__main__":
    main(*sys.argv[1:])
