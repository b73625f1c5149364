"""What a command says while it works."""

from collections.abc import Callable
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from minidiff.runs import machine

T = TypeVar("T")

console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)  # a path is printed as it is
errors = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=True)


def announce_compiling(backend: str) -> None:
    """The first start on a processor takes longer: said, lest it look like a program that hangs."""
    if backend == "numba" and not machine.compiled():
        console.print("Compiling the kernels for this processor, once: about a minute.")


def about(seconds: float) -> str:
    """A length of time as a person says it."""
    return f"about {max(round(seconds), 1)} s" if seconds < 90 else f"about {round(seconds / 60)} minutes"


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
