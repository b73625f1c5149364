"""Files: JSON read with limits, outputs checked before the work begins, files and folders written atomically."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from minidiff.errors import MinidiffError

LARGEST_JSON = 16 << 20  # bytes

T = TypeVar("T")


@dataclass(frozen=True)
class JSONFile:
    """A JSON file that was read, for those that parse different keys of its value."""

    path: Path
    value: Any

    def parse(self, parse: Callable[[Any], T]) -> T:
        """What `parse` makes of the value. Raises MinidiffError, with the file's name, if `parse` raises one."""
        with _naming(self.path):
            return parse(self.value)


def open_json(path: Path) -> JSONFile:
    """A JSON file, read.

    Raises MinidiffError, with the file's name, if it cannot be read, is larger than LARGEST_JSON or not JSON.
    """
    with _naming(path):
        if path.stat().st_size > LARGEST_JSON:
            raise MinidiffError("larger than any configuration; is it the right file?")
        return JSONFile(path, json.loads(path.read_text(encoding="utf-8")))


def read_json(path: Path, parse: Callable[[Any], T]) -> T:
    """parse(value) of the value in a JSON file. Raises MinidiffError as `open_json` and `JSONFile.parse` do."""
    return open_json(path).parse(parse)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors in this block become MinidiffErrors that name the file."""
    try:
        yield
    except OSError as error:
        raise MinidiffError(f"{path}: {error.strerror}; copy or write it again") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise MinidiffError(f"{path}: not JSON; copy or write it again") from None
    except ValueError as error:  # of `parse`, or of an integer of thousands of digits
        raise MinidiffError(f"{path}: {error}; copy or write it again") from None
    except MinidiffError as error:
        raise MinidiffError(f"{path}: {error}") from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file with `replace_file`."""
    replace_file(path, lambda part: part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: write(part) fills a file beside it, which is synced to disk and then renamed.

    Folders that are missing are made; the part of a killed process is overwritten. Raises MinidiffError if writing
    fails; `path` is then unchanged.
    """
    try:
        part = path.with_name(f".{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _renamed(part, path):
            write(part)
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
    except (OSError, ValueError) as error:  # ValueError: a path without a name
        raise MinidiffError(f"{path}: cannot be written ({error}); make room, or choose another place") from None


def write_output(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write an output file atomically, but without a sync: write(file) fills a file beside it, which is then renamed.

    Symbolic links are followed. Raises MinidiffError if writing fails; `path` is then unchanged.
    """
    place = followed(path)
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        with _renamed(part, place), open(part, "wb") as file:
            write(file)
    except OSError as error:
        reason = error.strerror or error
        raise MinidiffError(f"cannot write {path}: {reason}; choose a folder that exists and is yours") from error
    except ValueError as error:  # Pillow's, of more pixels than the format allows
        raise MinidiffError(f"cannot write {path}: {error}; give a name that ends in .png") from error


@contextmanager
def _renamed(part: Path, path: Path) -> Iterator[None]:
    """Rename `part` to `path` when the block ends; delete it if the block raises, by Ctrl-C too."""
    try:
        yield
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def followed(path: str | Path) -> Path:
    """The absolute path with all symbolic links resolved; a file written there leaves the links as they are.

    Raises MinidiffError for a relative path where the current folder was removed.
    """
    try:
        return Path(os.path.realpath(path))
    except FileNotFoundError:
        raise MinidiffError(f"{path}: the current folder was removed; change to one that is there") from None


def check_file(path: str | Path, *inputs: str | Path) -> None:
    """Check, before the work begins, that a file can be written at `path`, with links followed.

    Raises MinidiffError if it is a folder, not a regular file, or the same file as one of the inputs, and if its folder
    is missing or cannot be written to. A regular file may be there already.
    """
    place = followed(path)
    try:
        if place.is_dir():
            raise MinidiffError(f"cannot write {path}: it is a folder; give the name of a file")
        if not place.parent.is_dir():
            raise MinidiffError(f"cannot write {path}: no such folder; make it, or choose another")
        if os.path.lexists(place) and not place.is_file():
            raise MinidiffError(f"cannot write {path}: it is no regular file; choose another name")
        for given in inputs:
            if place.exists() and os.path.exists(given) and place.samefile(given):
                raise MinidiffError(f"cannot write {path}: it is the input {given}; choose another name")
        _check_can_be_made(place.with_name(f".{place.name}.{os.getpid()}.part"))  # the longest name that is needed
    except OSError as error:
        raise MinidiffError(f"cannot write {path}: {error.strerror}; choose another place") from None


def check_new_folder(path: Path) -> None:
    """Check, before the work begins, that a folder can be made at `path`, with links followed.

    Raises MinidiffError if it exists and is not an empty folder, is the current folder, or cannot be made.
    """
    place = followed(path)
    try:
        if os.path.lexists(place) and (not place.is_dir() or any(place.iterdir())):
            raise MinidiffError(f"{path}: is there already; choose a new folder")
        if place.is_dir() and place.samefile("."):  # to be replaced by the new one
            raise MinidiffError(f"{path}: is the current folder; choose a new folder")
        _check_can_be_made(place)
    except OSError as error:
        raise MinidiffError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder atomically: yields a temporary folder to fill, which is renamed if the block raises nothing.

    Raises MinidiffError as `check_new_folder` does.
    """
    check_new_folder(path)
    place = followed(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=place.parent, prefix=".part-")
    except OSError as error:
        raise MinidiffError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    with temporary as name:
        whole = Path(name, "whole")
        whole.mkdir()
        try:
            yield whole
            os.rename(whole, place)
        except MinidiffError as error:  # of a file in it
            raise MinidiffError(str(error).replace(str(whole), str(path))) from None
        except OSError as error:  # another process was there first, say
            raise MinidiffError(f"{path}: cannot be written ({error.strerror}); choose a new folder") from None


def _check_can_be_made(place: Path) -> None:
    """Raises OSError if an absolute path cannot be made, with the folders above it that are missing."""
    above = next(folder for folder in place.parents if os.path.exists(folder))
    for name in (place, *(above / part for part in place.relative_to(above).parts)):
        with suppress(FileNotFoundError):
            os.lstat(name)  # which may be too long
    with tempfile.TemporaryFile(dir=above):
        pass  # os.access says yes to root on a read-only disk, and of /proc
