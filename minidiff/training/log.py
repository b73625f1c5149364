"""The training log of a run, RUN/metrics.csv: step, loss, grad_norm and lr of each step, once."""

import os
from pathlib import Path

from minidiff.errors import MinidiffError
from minidiff.files import replace_file
from minidiff.training.step import StepStats

HEADER = "step,loss,grad_norm,lr\n"


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
        self.file.write(f"{stats.step},{stats.loss!r},{stats.grad_norm!r},{lr!r}\n")

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
    steps, losses = [], []
    if path.exists():
        for line in path.read_text(encoding="ascii", errors="replace").splitlines(keepends=True)[1:]:
            cells = line.split(",")
            if not line.endswith("\n") or len(cells) != 4 or cells[0] != str(len(steps) + 1):
                break
            try:
                losses.append(float(cells[1]))
            except ValueError:
                break
            steps.append(int(cells[0]))
    return steps, losses


def truncate_log(path: Path, step: int) -> None:
    """Drop every line after `step`, an incomplete last one included.

    Raises MinidiffError if a line up to `step` is missing.
    """
    steps, _ = read_log(path)
    if len(steps) < step:
        raise MinidiffError(f"{path}: ends at step {len(steps)}, the state is at {step}; restore it or start a new run")
    lines = path.read_bytes().splitlines(keepends=True)[1 : step + 1] if step else []
    replace_file(path, lambda part: part.write_bytes(b"".join([HEADER.encode(), *lines])))
