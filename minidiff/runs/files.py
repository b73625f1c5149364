"""Files that are read with care and written as a whole or not at all."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from minidiff.errors import MinidiffError
from minidiff.outputs import check_can_be_made, followed

LARGEST_JSON = 16 << 20  # bytes

T = TypeVar("T")


def read_json(path: Path, parse: Callable[[Any], T]) -> T:
    """What `parse` makes of a JSON file. Raises MinidiffError, with the file's name, if that is nothing."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise MinidiffError("larger than any configuration; is it the right file?")
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise MinidiffError(f"{path}: {error.strerror}; copy or write it again") from None
    except (ValueError, RecursionError):
        raise MinidiffError(f"{path}: not JSON; copy or write it again") from None
    except MinidiffError as error:
        raise MinidiffError(f"{path}: {error}") from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as a whole or not at all."""
    replace_file(path, lambda part: part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, wait until it is on the disk, then rename it: all or nothing.

    Raises MinidiffError if that fails; then `path` is what it was.
    """
    try:
        part = path.with_name(f".{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(part)
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:  # Ctrl-C too must leave nothing half-written behind
            part.unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:  # ValueError: a path without a name
        raise MinidiffError(f"{path}: cannot be written ({error}); make room, or choose another place") from None


def check_new_folder(path: Path) -> None:
    """Raises MinidiffError if something but an empty folder is there already, or if no folder can be made there."""
    place = followed(path)
    try:
        if os.path.lexists(place) and (not place.is_dir() or any(place.iterdir())):
            raise MinidiffError(f"{path}: is there already; choose a new folder")
        if place.is_dir() and place.samefile("."):  # to be replaced by the new one
            raise MinidiffError(f"{path}: is the current folder; choose a new folder")
        check_can_be_made(place)
    except OSError as error:
        raise MinidiffError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when the block ends without an error: the whole of it, or nothing."""
    check_new_folder(path)
    place = followed(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(dir=place.parent, prefix=".part-")
    except OSError as error:
        raise MinidiffError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    with beside as part:
        whole = Path(part, "whole")
        whole.mkdir()
        try:
            yield whole
            os.rename(whole, place)
        except MinidiffError as error:  # of a file in it
            raise MinidiffError(str(error).replace(str(whole), str(path))) from None
        except OSError as error:  # another process was there first, say
            raise MinidiffError(f"{path}: cannot be written ({error.strerror}); choose a new folder") from None
