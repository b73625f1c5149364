"""Faults among several ranks: an error, a stop or the death of one of them ends all, with one line on stderr.

An error of another rank than 0 is sent to rank 0, which finds it while it waits. A rank that has died is found by those
that wait for it on the same machine, by its process id; the MPI launcher, which sees it everywhere, then ends all.
"""

import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import minidiff.ranks as ranks
from minidiff.errors import MinidiffError

EVERY = 0.1  # seconds between two looks at the other processes
PATIENCE = 20.0  # seconds that a rank gives rank 0 to print its error and end it
LAUNCHERS = 5.0  # seconds that the launcher has to end the others after a death
FORWARDING = 0.5  # seconds that it has to pass our line on before MPI's own


class OtherRankError(MinidiffError):
    """An error of another rank, with all that the other has said about it."""


@dataclass
class _Watch:
    """What a rank needs to notice the faults of the others.

    errors  a communicator for the messages of errors alone
    others  process ids of the other ranks on this machine
    """

    errors: Any
    others: dict[int, int]
    dead: list[int] = field(default_factory=list)
    looked: float = 0.0


_watch: _Watch | None = None


def start_watching() -> None:
    """From here on faults of other ranks are noticed whenever this one waits. Alone it does nothing."""
    global _watch
    if ranks.size() == 1:
        return
    here = socket.gethostname()
    places = ranks.gather([here, os.getpid()])
    found = os.name == "posix"  # elsewhere os.kill(pid, 0) does not ask whether a process is there, it ends it
    others = {r: pid for r, (host, pid) in enumerate(places) if found and host == here and r != ranks.rank()}
    _watch = _Watch(ranks.communicator().Dup(), others)
    ranks.while_waiting.append(check)


def finish() -> None:
    """Wait until all ranks are here, without MPI's spinning, and leave MPI: none is missed from here on."""
    global _watch
    if _watch is not None:
        from mpi4py import MPI

        ranks.gather(None)
        ranks.while_waiting.remove(check)
        _watch = None
        MPI.Finalize()


def check() -> None:
    """Raises MinidiffError if another rank has died on this machine, and on rank 0 with the error of another rank."""
    if _watch is None or time.monotonic() - _watch.looked < EVERY:
        return
    _watch.looked = time.monotonic()
    _watch.dead = [r for r, pid in _watch.others.items() if not _is_there(pid)]
    if _watch.dead:
        names = " and ".join(f"rank {r} (process {_watch.others[r]})" for r in _watch.dead)
        raise MinidiffError(f"{names} has died")
    if ranks.rank() == 0 and _watch.errors.Iprobe():
        raise OtherRankError(_receive(_watch.errors))


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _receive(errors: Any) -> str:
    """The error that another rank has sent, with its rank."""
    from mpi4py import MPI

    status = MPI.Status()
    errors.Probe(status=status)
    data = np.empty(status.Get_count(MPI.BYTE), np.uint8)
    errors.Recv(data, status.Get_source())
    return f"rank {status.Get_source()}: {data.tobytes().decode()}"


def report(message: str) -> None:
    """Print an error's line on stderr: one of the ranks that have it does."""
    line, patience = f"minidiff: {message}", 0.0
    if _watch is None:  # alone, or MPI did not start
        if ranks.launched_rank() > 0:
            return
    elif _watch.dead:
        first = min({ranks.rank(), *_watch.others} - set(_watch.dead))
        patience = 0.0 if ranks.rank() == first else LAUNCHERS
    elif ranks.rank() > 0:
        line, patience = f"minidiff: rank {ranks.rank()}: {message}", PATIENCE
        _watch.errors.Isend(np.frombuffer(message.encode(), np.uint8), 0)
    time.sleep(patience)  # the rank that prints ends this one meanwhile, unless it is too busy to
    print(line, file=sys.stderr, flush=True)


@contextmanager
def ending_all() -> Iterator[None]:
    """If an exception or an exit code other than 0 leaves this block on one rank, all ranks end with that code."""
    try:
        yield
    except BaseException as end:
        code = end.code if isinstance(end, SystemExit) else 1
        if _watch is None or not code:
            raise
        if not isinstance(end, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        # after a death the launcher ends this rank by itself, and says less than MPI would
        time.sleep(LAUNCHERS if _watch.dead else FORWARDING)
        ranks.communicator().Abort(code if isinstance(code, int) else 1)
