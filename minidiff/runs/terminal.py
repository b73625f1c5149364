"""What a command says while it works."""

import errno
import io
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from minidiff.runs import machine

T = TypeVar("T")

console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)  # a path is printed as it is
errors = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=True)

GONE = (errno.EPIPE, errno.EIO)  # the reader of a pipe, as in `| head -1`; a terminal that was closed


class _Unread(io.FileIO):
    """A file that drops what is written to it once nobody reads it any more."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return memoryview(data).nbytes


def outlived(stream: TextIO) -> TextIO:
    """stdout or stderr for a command that is not to end when its reader does, whatever characters it prints.

    A stream that is not of a file stays the same.
    """
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")  # file names may hold what no encoding does
    file = getattr(stream.buffer, "raw", stream.buffer)
    if not isinstance(file, io.FileIO):
        return stream
    unread = _Unread(file.fileno(), "w", closefd=False)
    buffer = unread if file is stream.buffer else io.BufferedWriter(unread)  # as it was, under python -u
    return io.TextIOWrapper(
        buffer, stream.encoding, stream.errors, line_buffering=stream.line_buffering, write_through=stream.write_through
    )


def announce_compiling(backend: str) -> None:
    """The first start on a processor takes longer: said, lest it look like a program that hangs."""
    if backend == "numba" and not machine.compiled():
        console.print("Compiling the kernels for this processor, once: about a minute.")


def bar_of(transient: bool = False, on: Console = console) -> Progress:
    """A progress bar with a note, the time that has passed and the time that is left."""
    columns = (BarColumn(30), TextColumn("{task.completed:.0f}/{task.total}"), TextColumn("{task.fields[note]}"))
    return Progress(
        TextColumn("{task.description}"), *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        console=on, transient=transient,
    )  # fmt: skip


def with_bar(name: str, total: int, work: Callable[[Callable[[], object]], T]) -> T:
    """What work(tick) returns, where every tick() moves the bar by one."""
    with bar_of() as bar:
        task = bar.add_task(name, total=total, note="")
        done = work(lambda: bar.advance(task))
        bar.update(task, completed=total)  # of what is counted, some may not have been needed
        return done
