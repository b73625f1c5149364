"""The consoles of the command line: escaping of untrusted text, progress bars, the library's reports, closed pipes."""

import errno
import io
import logging
import shlex
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from minidiff.errors import MinidiffWarning
from minidiff.progress import progress_shown

T = TypeVar("T")
CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: controls, surrogates, line and paragraph separators
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # embeddings, overrides and isolates


def printable(text: str) -> str:
    r"""The text in one line, with each control character of terminals escaped as in Python literals, such as \x1b.

    These are control characters, line separators and bidirectional controls.
    """
    return "".join(c.encode("unicode_escape").decode() if _is_control(c) else c for c in text)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in CONTROLS or character in BIDI


def shell_command(words: Sequence[str]) -> str:
    """The words as a command to paste into a shell (bash, zsh, ksh), whatever the encoding of the terminal.

    A word that standard output cannot encode or that `printable` escapes becomes $'...', with octal escapes.
    """
    return " ".join(shlex.quote(word) if _is_printable(word) else _ansi_c_quote(word) for word in words)


def _is_printable(word: str) -> bool:
    """Whether standard output can encode the word, and the word has no control characters."""
    try:
        word.encode(getattr(console.file, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return printable(word) == word


def _ansi_c_quote(word: str) -> str:
    data = word.encode("utf-8", "surrogateescape")
    return "$'" + "".join(chr(b) if 32 <= b < 127 and chr(b) not in "\\'" else f"\\{b:03o}" for b in data) + "'"


class Terminal(Console):
    """A console that prints strings verbatim, escaped by `printable`; a Text is printed unchanged."""

    def __init__(self, **options: Any):
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=True, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


console: Console = Terminal()
stderr_console: Console = Terminal(stderr=True)

CLOSED = (errno.EPIPE, errno.EIO)  # a pipe without a reader, as after `| head -1`; a closed terminal


class _IgnoresClosed(io.FileIO):
    """A file that discards what is written once its pipe or terminal is closed; stderr, whatever is wrong with it."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in CLOSED and self.fileno() != 2:  # of stderr there is nowhere to tell
                reason = f"{error.strerror}; make room, or send the output elsewhere"
                raise OSError(error.errno, f"standard output cannot be written: {reason}") from None
            return memoryview(data).nbytes


def ignore_closed(stream: TextIO) -> TextIO:
    """A stream (stdout, stderr) that ignores a closed pipe or terminal, and escapes characters that it cannot encode.

    A stream that is not connected to a file is returned unchanged.
    """
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")  # file names may hold surrogates, which no encoding has
    file = getattr(stream.buffer, "raw", stream.buffer)
    if not isinstance(file, io.FileIO):
        return stream
    raw = _IgnoresClosed(file.fileno(), "w", closefd=False)
    buffer = raw if file is stream.buffer else io.BufferedWriter(raw)  # unbuffered as before under python -u
    return io.TextIOWrapper(
        buffer, stream.encoding, stream.errors, line_buffering=stream.line_buffering, write_through=stream.write_through
    )


def print_warning(text: str) -> None:
    """Print a warning, unless it is empty, as a line on stderr."""
    if text:
        stderr_console.print(f"minidiff: {text}")


class Note(ProgressColumn):
    """A column with the task's note, as a string, which the console escapes; a TextColumn would make a Text."""

    def render(self, task: Task) -> str:
        return task.fields["note"]


def progress_bar(transient: bool = False, on: Console = console) -> Progress:
    """A progress bar with a note, elapsed and remaining time."""
    columns = (BarColumn(30), TextColumn("{task.completed:.0f}/{task.total}"), Note())
    return Progress(
        TextColumn("{task.description}"), *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        console=on, transient=transient,
    )  # fmt: skip


def with_progress_bar(name: str, total: int, work: Callable[[Callable[[], object]], T]) -> T:
    """work(tick) with a progress bar, which every tick() advances by one of `total`."""
    with shown_progress(name, total) as tick:
        return work(tick)


@contextmanager
def shown_progress(
    name: str, total: int, transient: bool = False, on: Console = console
) -> Iterator[Callable[..., object]]:
    """A progress bar; yields tick(done=1), which advances it."""
    with progress_bar(transient, on) as bar:
        task = bar.add_task(name, total=total, note="")
        yield lambda done=1: bar.advance(task, done)
        bar.update(task, completed=total)  # work may finish with fewer ticks


@contextmanager
def reports_shown() -> Iterator[None]:
    """Within this block the library's progress, messages (logging) and MinidiffWarnings are printed, a line each."""
    logger, handler = logging.getLogger("minidiff"), _Lines()
    level = logger.level
    with warnings.catch_warnings(), progress_shown(shown_progress):
        warnings.simplefilter("always", MinidiffWarning)  # whatever Python's -W says
        warnings.showwarning = _warning_printer(warnings.showwarning)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


class _Lines(logging.Handler):
    """Prints the messages of the library."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(record.getMessage())


def _warning_printer(others: Callable[..., None]) -> Callable[..., None]:
    """In place of warnings.showwarning: prints a MinidiffWarning, and passes all other warnings on."""

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, MinidiffWarning):
            console.print(str(message))
        else:
            others(message, category, *where)

    return show
