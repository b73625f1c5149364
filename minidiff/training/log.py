"""The training log of a run, RUN/metrics.csv: step, loss, grad_norm and lr of each step, once.

loss_q1 ... loss_q4 are the mean unweighted losses of the step's images in each quarter of the noise levels, from the
least noise to the most; empty if there is none. The logs of older runs lack these columns until they are resumed.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from minidiff.errors import MinidiffError
from minidiff.files import replace_file
from minidiff.training.step import QUARTERS, StepStats

HEADER = "step,loss,grad_norm,lr,loss_q1,loss_q2,loss_q3,loss_q4\n"


class TrainingLog:
    """Appends one line a step to a run's log."""

    def __init__(self, path: Path):
        self.path = path
        new = not path.exists()
        self.file = open(path, "a", encoding="ascii", buffering=1)  # line-buffered: other programs can follow it
        if new:
            self.file.write(HEADER)

    def write(self, stats: StepStats, lr: float) -> None:
        """Append one step's line; floats with repr precision. Raises MinidiffError as `check` does."""
        self.check()
        quarters = ("" if loss is None else repr(loss) for loss in stats.quarter_losses)
        self.file.write(f"{stats.step},{stats.loss!r},{stats.grad_norm!r},{lr!r},{','.join(quarters)}\n")

    def check(self) -> None:
        """Raises MinidiffError if the file is no longer at its path: a state saved there would have no log."""
        try:
            if os.path.samestat(os.stat(self.path), os.fstat(self.file.fileno())):
                return
        except (FileNotFoundError, NotADirectoryError):
            pass
        raise MinidiffError(f"{self.path}: was moved, removed or replaced during training; put it back, then --resume")

    def flush(self) -> None:
        """Wait until all lines are on the disk; call it before a state is saved."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def read_log(path: Path) -> tuple[list[int], list[float]]:
    """Steps and losses of a log, up to the first line that is missing or damaged."""
    lines = list(_lines(path))
    return [int(cells[0]) for cells in lines], [float(cells[1]) for cells in lines]


def read_quarter_losses(path: Path) -> list[list[float]]:
    """The losses of the four quarters of the noise levels, each (n,) for the n steps of `read_log`; nan where empty."""
    lines = list(_lines(path))
    return [[_float(cells[-QUARTERS + quarter]) for cells in lines] for quarter in range(QUARTERS)]


def read_lines(path: Path) -> list[str]:
    """The header and the lines of a log, up to the first line that is missing or damaged."""
    return [HEADER, *(",".join(cells) + "\n" for cells in _lines(path))]


def truncate_log(path: Path, step: int) -> None:
    """Drop every line after `step`, an incomplete last one included; an older run's lines get empty new columns.

    Raises MinidiffError if a line up to `step` is missing.
    """
    header, *lines = read_lines(path)
    if len(lines) < step:
        raise MinidiffError(f"{path}: ends at step {len(lines)}, the state is at {step}; restore it or start a new run")
    kept = header + "".join(lines[:step])
    replace_file(path, lambda part: part.write_text(kept, encoding="ascii", newline=""))


def _lines(path: Path) -> Iterator[list[str]]:
    """The cells of a log's lines after the header, up to the first that is missing or damaged."""
    text = path.read_text(encoding="ascii", errors="replace") if path.exists() else ""
    header, *lines = text.splitlines(keepends=True) or [HEADER]
    columns = HEADER.count(",") + 1
    for step, line in enumerate(lines, start=1):
        cells = line.removesuffix("\n").split(",")
        if not line.endswith("\n") or len(cells) != header.count(",") + 1 or cells[0] != str(step):
            return
        try:
            float(cells[1])
        except ValueError:
            return
        yield cells + [""] * (columns - len(cells))


def _float(cell: str) -> float:
    """The number in a cell; nan if it is empty or damaged."""
    try:
        return float(cell)
    except ValueError:
        return math.nan
