"""What a command says while it works."""

import errno
import io
import shlex
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from minidiff.runs import machine

T = TypeVar("T")
ACTS = ("Cc", "Cs", "Zl", "Zp")  # controls, halves of surrogate pairs, separators of lines and paragraphs
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # embeddings, overrides and isolates


def printable(text: str) -> str:
    r"""The text in one line, with each character that acts on a terminal escaped as in Python's literals, \x1b say.

    Those are control characters, line separators and what changes the direction of the text behind it.
    """
    return "".join(c.encode("unicode_escape").decode() if _acts(c) else c for c in text)


def _acts(character: str) -> bool:
    return unicodedata.category(character) in ACTS or character in BIDI


def shell_command(words: Sequence[str]) -> str:
    """The words as a command to paste into a shell (bash, zsh, ksh), whatever the encoding of the terminal.

    A word that the terminal cannot show as it is becomes $'...', with each byte beyond ASCII in octal.
    """
    return " ".join(shlex.quote(word) if _shown(word) else _in_bytes(word) for word in words)


def _shown(word: str) -> bool:
    """Whether standard output can hold the word as it is."""
    try:
        word.encode(getattr(console.file, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return printable(word) == word


def _in_bytes(word: str) -> str:
    data = word.encode("utf-8", "surrogateescape")
    return "$'" + "".join(chr(b) if 32 <= b < 127 and chr(b) not in "\\'" else f"\\{b:03o}" for b in data) + "'"


class Terminal(Console):
    """A console that prints strings as they are, but for what `printable` escapes; a Text is printed unchanged."""

    def __init__(self, **options: Any):
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=True, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


console = Terminal()
errors = Terminal(stderr=True)

GONE = (errno.EPIPE, errno.EIO)  # the reader of a pipe, as in `| head -1`; a terminal that was closed


class _Unread(io.FileIO):
    """A file that drops what is written to it once nobody reads it any more; stderr, whatever is wrong with it."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE and self.fileno() != 2:  # of stderr there is nowhere to tell
                reason = f"{error.strerror}; make room, or send the output elsewhere"
                raise OSError(error.errno, f"standard output cannot be written: {reason}") from None
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


def about(seconds: float) -> str:
    """A length of time as a person says it."""
    return f"about {max(round(seconds), 1)} s" if seconds < 90 else f"about {round(seconds / 60)} minutes"


class Note(ProgressColumn):
    """The column of a bar that says more; a string, which the console escapes, where a TextColumn makes a Text."""

    def render(self, task: Task) -> str:
        return task.fields["note"]


def bar_of(transient: bool = False, on: Console = console) -> Progress:
    """A progress bar with a note, the time that has passed and the time that is left."""
    columns = (BarColumn(30), TextColumn("{task.completed:.0f}/{task.total}"), Note())
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
