"""One side of the measurement, a process or several ranks: it runs when it is asked to, and sleeps while others run.

    mpiexec -n 2 python scaling_rank.py SOCKET THREADS BACKEND REDUCTION

Every rank connects to the socket, says its rank, and reads a request a line, in JSON; rank 0 answers with a line.
"""

import json
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import minidiff as md
from minidiff import machine, ranks
from minidiff.models.config import UNetConfig
from minidiff.training.config import TrainConfig
from minidiff.training.parallel.timeline import recording
from minidiff.training.step import make_optimizer, train_step

REPEATS = 20  # exchanges of one size; the least time of them counts


def training_step(config: dict[str, Any], batch: int, backend: str, reduction: str) -> Callable[[], None]:
    """A function that takes one training step: on noise, of a batch that the ranks share."""
    unet = md.UNet(UNetConfig.of(config), np.random.default_rng(0), backend)
    optimizer = make_optimizer(unet.named_parameters(), TrainConfig("", backend=backend, reduction=reduction))
    schedule, rng = md.linear_schedule(), np.random.default_rng(1)
    x0 = rng.standard_normal((batch, *unet.image_shape), np.float32)

    def step() -> None:
        float(train_step(unet, schedule, optimizer, x0, rng, accumulate=ranks.size()).loss)

    return step


def timed(step: Callable[[], object], times: int) -> float:
    """Seconds of one of so many calls in a row, from where all ranks are ready to where all have ended."""
    ranks.gather(None)
    start = time.perf_counter()
    for _ in range(times):
        step()
    ranks.gather(None)
    return (time.perf_counter() - start) / times


def timeline(step: Callable[[], object]) -> list[list[Any]]:
    """The events of a step on every rank: name, index, start and end, in seconds from the first start on."""
    with recording() as events:
        ranks.gather(None)
        step()
    of_ranks = ranks.gather(events)
    first = min(start for own in of_ranks for _, _, start, _ in own)
    return [[[name, i, start - first, end - first] for name, i, start, end in own] for own in of_ranks]


def exchange(sizes: list[int]) -> list[float]:
    """Seconds of an all-reduce of arrays of so many bytes, as MPI does it."""
    from mpi4py import MPI

    found = []
    for size in sizes:
        a = np.zeros(size // 4, np.float32)

        def once(a: np.ndarray = a) -> None:
            ranks.wait(ranks.communicator().Iallreduce(MPI.IN_PLACE, a))

        found.append(min(timed(once, 1) for _ in range(REPEATS)))
    return found


def library() -> str:
    """The name and version of the MPI."""
    from mpi4py import MPI

    return MPI.Get_library_version().split(",")[0].strip()


def answers(backend: str, reduction: str) -> dict[str, Callable[..., Any]]:
    """The functions that answer requests, by name; `build` comes first."""
    steps: list[Callable[[], None]] = []  # the one that was built last

    def build(config: dict[str, Any], batch: int) -> None:
        steps.clear()  # releases the memory of the one before
        steps.append(training_step(config, batch, backend, reduction))

    return {
        "build": build,
        "time": lambda times: timed(steps[0], times),
        "timeline": lambda: timeline(steps[0]),
        "exchange": exchange,
        "library": library,
    }


def main(path: str, threads: str, backend: str, reduction: str) -> None:
    machine.use_threads(int(threads), backend)
    functions = answers(backend, reduction)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        with connection.makefile("rw") as stream:
            print(ranks.rank(), file=stream, flush=True)
            for line in stream:
                request = json.loads(line)
                answer = functions[request.pop("do")](**request)
                if ranks.rank() == 0:
                    print(json.dumps(answer), file=stream, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
