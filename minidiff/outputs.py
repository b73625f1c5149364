"""Where a command is to write: checked before the work begins, so that neither the work nor what is there gets lost."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from minidiff.errors import MinidiffError


def followed(path: str | Path) -> Path:
    """The absolute path that all symbolic links of a path lead to. Written there, they stay links.

    Raises MinidiffError for a relative path where the current folder was removed.
    """
    try:
        return Path(os.path.realpath(path))
    except FileNotFoundError:
        raise MinidiffError(f"{path}: the current folder was removed; change to one that is there") from None


def check_file(path: str | Path, *inputs: str | Path) -> None:
    """Raises MinidiffError unless a file can be written at `path`, links followed: a new one, or over an earlier one.

    Not over one of the command's inputs, by whatever name, nor over what is no regular file.
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
        check_can_be_made(place.with_name(f".{place.name}.{os.getpid()}.part"))  # the longest name on the way to it
    except OSError as error:
        raise MinidiffError(f"cannot write {path}: {error.strerror}; choose another place") from None


def check_can_be_made(place: Path) -> None:
    """Raises OSError unless an absolute path can be made, with the folders above it that are missing."""
    above = next(folder for folder in place.parents if os.path.exists(folder))
    for name in (place, *(above / part for part in place.relative_to(above).parts)):
        with suppress(FileNotFoundError):
            os.lstat(name)  # which may be too long
    with tempfile.TemporaryFile(dir=above):
        pass  # os.access says yes to root on a read-only disk, and of /proc
