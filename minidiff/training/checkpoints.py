"""Which states of a run are kept: the newest, the last few before it, and the best.

RUN/training/state.safetensors          the newest, the truth of the run
RUN/training/state-000500.safetensors   the last few, the newest among them: the same file by a second name
RUN/training/best.safetensors           likewise, that of the lowest loss in checkpoints.csv
RUN/checkpoints.csv                     step, loss: of each checkpoint's averaged weights (probe.py)

A state is written once, by its step's name, and gets the others by links, so that at every moment one that is whole
is in its place.
"""

import math
import os
import shutil
from pathlib import Path

from minidiff.errors import MinidiffError
from minidiff.files import replace_file
from minidiff.formats.run_state import best_file, kept_states, saved_step, state_file, step_file

HEADER = "step,loss"


def keep_last(folder: Path, step: int, last: int) -> None:
    """Make the state of `step`, just written by that name, the newest; of all, the `last` ones and the best stay."""
    link(step_file(folder, step), state_file(folder))
    _keep_best(folder)
    for path in list(kept_states(folder).values())[:-last]:
        path.unlink()


def check_room(folder: Path, size: int, last: int) -> int:
    """Bytes of disk that states of `size` bytes take: the `last` ones, the best, and the next while it is written.

    Raises MinidiffError if that is more than those that are there take and the disk has free.
    """
    needed = size * (last + 2)
    there = {
        file.st_ino: file.st_size for file in (path.stat() for path in (folder / "training").glob("*.safetensors"))
    }
    total, _, free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists()))
    if needed > free + sum(there.values()) and total:  # of 0 bytes are file systems that cannot tell
        raise MinidiffError(
            f"{folder}: its checkpoints take {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free; "
            "make room, choose another --out, or give a smaller --keep"
        )
    return needed


def drop_later_states(folder: Path, step: int) -> None:
    """Make what is kept end at a step, as when its state had just been written."""
    for newer, path in kept_states(folder).items():
        if newer > step:
            path.unlink()
    losses = read_losses(folder)
    if any(newer > step for newer in losses):
        _write_losses(folder, {k: loss for k, loss in losses.items() if k <= step})
    _keep_best(folder)


def record_loss(folder: Path, step: int, loss: float) -> None:
    """Add a checkpoint's line to checkpoints.csv: before its state is written, so that each state has one."""
    _write_losses(folder, {**read_losses(folder), step: loss})


def read_losses(folder: Path) -> dict[int, float]:
    """Step -> loss of the checkpoints, as far as checkpoints.csv is whole."""
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


def _keep_best(folder: Path) -> None:
    """Let best.safetensors be the state of the lowest loss, of those that are still there; the first of equals."""
    losses, states, held = read_losses(folder), kept_states(folder), saved_step(best_file(folder))
    there = [step for step in losses if step in states or step == held]
    if not there:
        best_file(folder).unlink(missing_ok=True)
        return
    best = min(there, key=lambda step: (math.isnan(losses[step]), losses[step], step))
    if best != held:
        link(states[best], best_file(folder))


def link(source: Path, target: Path) -> None:
    """Give a file a second name in the place of what has it now; a copy where the file system has no links."""

    def write(part: Path) -> None:
        part.unlink(missing_ok=True)
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)

    if not (target.exists() and target.samefile(source)):  # to rename one name of a file to another does nothing
        replace_file(target, write)
