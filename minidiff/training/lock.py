"""The lock of a run's folder: one process at a time trains in it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minidiff.errors import MinidiffError


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Holds a run's folder, so that no second process trains in it; made if there is none.

    Raises MinidiffError if one does already, or if the folder cannot be written. Where the block fails, folders
    that were made for it and are still empty go again.
    """
    lock = folder / ".lock"
    try:
        made = [path for path in (lock, folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        file = open(lock, "a")  # whatever it holds, it keeps
    except OSError as error:
        raise MinidiffError(f"{folder}: {error.strerror}; choose a folder that can be written") from None
    with file:
        try:
            _lock(file)
        except OSError:
            raise MinidiffError(f"{folder}: another process is training here; wait for it, or stop it") from None
        try:
            yield
        except BaseException:
            with suppress(OSError):
                for path in made:
                    path.unlink() if path == lock else path.rmdir()
            raise


def _lock(file) -> None:
    """Lock an open file until it is closed; OSError if another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
