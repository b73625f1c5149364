"""The lock of a run's folder: one process at a time trains in it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import minidiff.ranks as ranks
from minidiff.errors import MinidiffError


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Lock a run's folder within this block, so that no second process trains in it; the folder is created if missing.

    Raises MinidiffError if another process holds the lock, or if the folder cannot be written. If the block fails,
    folders that were created for it and are still empty are removed. Of several ranks, rank 0 holds the lock.
    """
    if ranks.rank() > 0:
        yield
        return
    lock = folder / ".lock"
    try:
        made = [path for path in (lock, folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        file = open(lock, "a")  # append mode: an existing file keeps its content
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
