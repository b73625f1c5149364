"""The checkpoints that a run keeps: the last few states, the newest among them, and the best.

Their files are described in formats/run_state.py. RUN/checkpoints.csv has step and validation loss of every checkpoint.
A state is written once, under its step's name; hard links give it the others, so that state.safetensors is complete at
any moment.
"""

import math
import os
import shutil
from pathlib import Path

from minidiff.errors import MinidiffError
from minidiff.files import replace_file
from minidiff.formats.run_state import best_file, kept_states, saved_step, state_file, step_file

HEADER = "step,loss"


def make_newest(folder: Path, step: int, keep: int) -> None:
    """Make the state of `step` the newest; keep the last `keep` states and the best, delete the others."""
    link(step_file(folder, step), state_file(folder))
    _update_best(folder)
    for path in list(kept_states(folder).values())[:-keep]:
        path.unlink()


def check_disk_space(folder: Path, size: int, keep: int) -> int:
    """Bytes of disk that states of `size` bytes take: the last `keep`, the best, and the next while it is written.

    Raises MinidiffError if that exceeds the free space and the size of the states that exist.
    """
    needed = size * (keep + 2)
    existing = {
        file.st_ino: file.st_size for file in (path.stat() for path in (folder / "training").glob("*.safetensors"))
    }
    total, _, free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists()))
    if needed > free + sum(existing.values()) and total:  # a total of 0: the file system does not report its size
        raise MinidiffError(
            f"{folder}: its checkpoints take {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free; "
            "free space, choose another --out, or give a smaller --keep"
        )
    return needed


def drop_later_states(folder: Path, step: int) -> None:
    """Delete states and losses of later steps than `step`, as if its state had just been written."""
    for newer, path in kept_states(folder).items():
        if newer > step:
            path.unlink()
    losses = read_losses(folder)
    if any(newer > step for newer in losses):
        _write_losses(folder, {k: loss for k, loss in losses.items() if k <= step})
    _update_best(folder)


def record_loss(folder: Path, step: int, loss: float) -> None:
    """Add a checkpoint's line to checkpoints.csv; called before its state is written, so that each state has one."""
    _write_losses(folder, {**read_losses(folder), step: loss})


def read_losses(folder: Path) -> dict[int, float]:
    """Step -> validation loss of the checkpoints, up to the first damaged line of checkpoints.csv."""
    path, losses = folder / "checkpoints.csv", {}
    if path.is_file():
        for line in path.read_text(encoding="ascii", errors="replace").splitlines()[1:]:
            try:
                step, loss = line.split(",")
                losses[int(step)] = float(loss)
            except ValueError:
                break
    return losses


def _write_losses(folder: Path, losses: dict[int, float]) -> None:
    lines = [HEADER, *(f"{step},{loss!r}" for step, loss in losses.items())]
    replace_file(folder / "checkpoints.csv", lambda part: part.write_text("\n".join(lines) + "\n", encoding="ascii"))


def _update_best(folder: Path) -> None:
    """Link best.safetensors to the state with the lowest loss of those that exist; of equals, to the earliest."""
    losses, states = read_losses(folder), kept_states(folder)
    previous = saved_step(best_file(folder))
    candidates = [step for step in losses if step in states or step == previous]
    if not candidates:
        best_file(folder).unlink(missing_ok=True)
        return
    best = min(candidates, key=lambda step: (math.isnan(losses[step]), losses[step], step))
    if best != previous:
        link(states[best], best_file(folder))


def link(source: Path, target: Path) -> None:
    """Hard-link `target` to `source`, replacing it atomically; a copy where the file system has no hard links."""

    def write(part: Path) -> None:
        part.unlink(missing_ok=True)
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)

    if not (target.exists() and target.samefile(source)):  # rename does nothing between two names of one file
        replace_file(target, write)
