"""The processes of an MPI job: how many there are, which of them this one is, and what they exchange.

`mpiexec -n 4 minidiff ...` starts four processes, of ranks 0 to 3, which run the same program. Without a launcher a
process is rank 0 of 1: mpi4py is not imported, and every function here returns what it is given. All ranks call the
collectives (`gather`, `broadcast`, `concatenate`) in the same order. They wait in Python, so that signals are handled.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from minidiff.errors import MinidiffError

# The number of processes as the launchers of Open MPI, MPICH (Intel MPI, PBS) and Slurm tell it. The first that is set
# counts: within a job of Slurm, mpiexec may start another number of processes than srun, with which it starts its own.
LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
LAUNCHED_RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
SPIN = 0.05  # seconds of waiting before the processor is given up

while_waiting: list[Callable[[], object]] = []  # called again and again; one that raises ends the waiting (faults.py)
waited: float = 0.0  # seconds in `wait_until` so far
_alone = False


def launched() -> int:
    """The number of processes that an MPI launcher started, by its environment variables; 1 without a launcher."""
    return max(1, _first_number(LAUNCHED))


def launched_rank() -> int:
    """The rank of this process by the launcher's environment variables, for errors before MPI has started."""
    return _first_number(LAUNCHED_RANK)


def _first_number(names: tuple[str, ...]) -> int:
    """The first of these environment variables that is a number; 0 if none is."""
    return next((int(value) for name in names if (value := os.environ.get(name, "")).isdigit()), 0)


@cache
def communicator() -> Any:
    """mpi4py's communicator of all ranks, None for a process that is alone; the first call starts MPI.

    Raises MinidiffError if a launcher started this process and mpi4py is missing, or its MPI is not the launcher's.
    """
    if launched() == 1:
        return None
    try:
        import mpi4py

        mpi4py.rc.thread_level = "funneled"  # only the main thread calls MPI
        from mpi4py import MPI
    except ImportError as error:
        raise MinidiffError(f"to run as {launched()} processes: pip install 'minidiff[mpi]' ({error})") from None
    if (n := MPI.COMM_WORLD.Get_size()) != launched():
        library = MPI.Get_library_version().split(",")[0].strip()
        raise MinidiffError(
            f"the launcher started {launched()} processes, and {library} sees {n}: use the mpiexec of that MPI; "
            "with Slurm srun --mpi=pmix, with one task srun -n 1"
        )
    return MPI.COMM_WORLD.Dup()


def size() -> int:
    """The number of ranks, n."""
    return 1 if _alone or communicator() is None else communicator().Get_size()


def rank() -> int:
    """The rank of this process, 0 ... n - 1. Rank 0 alone writes files and prints."""
    return 0 if size() == 1 else communicator().Get_rank()


@contextmanager
def alone() -> Iterator[None]:
    """Within this block the process is rank 0 of 1: for work that one rank does and the others do not take part in."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def share(items: int) -> slice:
    """The items of this rank, of so many: consecutive, in the order of ranks, as equal in number as possible.

    Rank 0 has the first item, however few there are.
    """
    return slice(-(-items * rank() // size()), -(-items * (rank() + 1) // size()))


def gather(value: Any) -> list[Any]:
    """Every rank's value, in the order of ranks, on every rank; a value is what JSON can hold."""
    if size() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.empty(size(), np.int64)
    wait(communicator().Iallgather(np.array([len(data)]), lengths))
    ends = np.cumsum(lengths)
    everything = _concatenate(data, lengths)
    return [json.loads(everything[end - n : end].tobytes()) for end, n in zip(ends, lengths, strict=True)]


def broadcast(value: Any) -> Any:
    """Rank 0's value, which JSON can hold, on every rank."""
    return gather(value if rank() == 0 else None)[0]


def concatenate(a: np.ndarray) -> np.ndarray:
    """Every rank's array (n_r, ...), in the order of ranks, along axis 0: (sum n_r, ...) on every rank.

    They have the same type and the same shape but for axis 0, which may be 0.
    """
    if size() == 1:
        return a
    row = int(np.prod(a.shape[1:]))
    counts = np.array([n * row for n in gather(len(a))])
    return _concatenate(np.ascontiguousarray(a).ravel(), counts).reshape(-1, *a.shape[1:])


def _concatenate(data: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The 1-d arrays of all ranks, of so many elements each, in one."""
    everything = np.empty(counts.sum(), data.dtype)
    wait(communicator().Iallgatherv(data, [everything, counts]))
    return everything


def wait(*requests: Any) -> None:
    """Wait until mpi4py's requests are complete."""
    wait_until(lambda: all([request.Test() for request in requests]))


def wait_until(done: Callable[[], bool]) -> None:
    """Wait until done() is true; MPI makes progress in the calls. Python's signal handlers run meanwhile."""
    global waited
    start = time.monotonic()
    while not done():
        for check in while_waiting:
            check()
        time.sleep(0 if time.monotonic() - start < SPIN else 0.0005)
    waited += time.monotonic() - start
