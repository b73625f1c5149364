"""Times training steps against processes, threads and batch size, in turn: `make scaling`.

Each side, so many processes of so many threads, is started once and sleeps while another one runs: A B C A B C. Times
are of a step of training on all images of the batch, without reading them.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console

from minidiff import machine
from minidiff.bench import cases
from minidiff.bench.ours import unet
from minidiff.engine.backend import get_backend
from minidiff.errors import MinidiffError

ROUNDS = 5
TURN = 0.5  # seconds of steps before it is the next side's turn, at least one step
PAUSE = 0.1  # seconds before a turn, in which spinning threads go to sleep
PATIENCE = 1800  # seconds for an answer: kernels may have to be compiled
BATCHES = (8, 16, 32, 64)
NETWORKS = {"U-Net": cases.UNET, "demo's network": cases.DEMO}
EXCHANGED = tuple(4**k for k in range(1, 13)) + (36_000_000,)  # bytes, to about the U-Net's gradient
RANK = Path(__file__).with_name("scaling_rank.py")

Ask = Callable[..., Any]


class Side(NamedTuple):
    """So many processes of so many threads; reduction: how they add up gradients."""

    processes: int
    threads: int
    reduction: str = "exact"


def sides(cores: int) -> list[Side]:
    """One thread, then all ways to divide the cores among processes; the last one with MPI's own reduction, too."""
    found = [Side(1, 1), *(Side(n, cores // n) for n in range(1, cores + 1) if cores % n == 0)]
    return list(dict.fromkeys([*found, found[-1]._replace(reduction="mpi")] if cores > 1 else found))


@contextmanager
def started(side: Side, backend: str) -> Iterator[Ask]:
    """ask(do=..., ...) of the ranks of a side, in processes that end with the context; it returns rank 0's answer."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(folder / "socket"))
        listener.listen(side.processes)
        errors = stack.enter_context(open(folder / "errors", "w+"))
        command = [sys.executable, RANK, folder / "socket", side.threads, backend, side.reduction]
        if side.processes > 1:
            command = [_mpiexec(), "--bind-to", "none", "-n", side.processes, *command]
        child = stack.enter_context(subprocess.Popen(list(map(str, command)), stdout=errors, stderr=errors))
        stack.callback(child.terminate)
        streams = {}
        while len(streams) < side.processes:
            connection = stack.enter_context(_accept(listener, child, folder / "errors"))
            stream = stack.enter_context(connection.makefile("rw"))
            streams[int(stream.readline())] = stream

        def ask(**request: Any) -> Any:
            for stream in streams.values():
                print(json.dumps(request), file=stream, flush=True)
            if not (line := streams[0].readline()):
                raise _ended(folder / "errors")
            return json.loads(line)

        yield ask


def _mpiexec() -> str:
    found = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    if found is None:
        raise MinidiffError("mpiexec is missing: pip install 'minidiff[mpi]'")
    return found


def _accept(listener: socket.socket, child: subprocess.Popen, errors: Path) -> socket.socket:
    """The connection of the next rank. Raises MinidiffError if the processes end before."""
    listener.settimeout(1)
    while child.poll() is None:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        connection.settimeout(PATIENCE)
        return connection
    raise _ended(errors)


def _ended(errors: Path) -> MinidiffError:
    last = errors.read_text(errors="replace").strip().splitlines()[-1:]
    return MinidiffError(f"a measured process has ended: {' '.join(last) or 'without a message'}")


def measure(
    networks: dict[str, Any], batches: tuple[int, ...], cores: int, backend: str = "numba", rounds: int = ROUNDS
) -> dict[str, Any]:
    """All that the page reads: seconds of steps by network, batch and side; of exchanges; the time line of a step."""
    chosen = sides(cores)
    with ExitStack() as stack:
        asks = {side: stack.enter_context(started(side, backend)) for side in chosen}
        found: dict[str, Any] = {"sides": [side._asdict() for side in chosen], "steps": []}
        for name, config in networks.items():
            for batch in (n for n in batches if n % cores == 0):
                seconds = _in_turn(asks, config, batch, rounds)
                found["steps"].append({"network": name, "batch": batch, "seconds": list(seconds.values())})
                if name == next(iter(networks)) and batch == batches[-1]:
                    exact = next(side for side in reversed(chosen) if side.reduction == "exact")
                    found["timeline"] = {"side": chosen.index(exact), "ranks": asks[exact](do="timeline")}
        if cores > 1:
            found["MPI"] = asks[chosen[-1]](do="library")
            found["exchange"] = {"bytes": EXCHANGED, "seconds": asks[chosen[-1]](do="exchange", sizes=EXCHANGED)}
    return found


def _in_turn(asks: dict[Side, Ask], config: Any, batch: int, rounds: int) -> dict[Side, list[float]]:
    """Seconds of a step on each side, one value a round; a first round warms up and is not counted."""
    steps, seconds = {}, {side: [] for side in asks}
    for side, ask in asks.items():
        ask(do="build", config=config.to_dict(), batch=batch)
        ask(do="time", times=1)  # compiles
        steps[side] = max(1, round(TURN / ask(do="time", times=1)))
    for _ in range(rounds):
        for side, ask in asks.items():
            time.sleep(PAUSE)
            seconds[side].append(ask(do="time", times=steps[side]))
    return seconds


def facts_of(config: Any) -> dict[str, int]:
    """The number of parameters of a network, and the floating-point operations of its evaluation for one image."""
    network = unet(get_backend("numpy"), config, rng=None)
    return {"parameters": sum(p.data.size for p in network.parameters()), "flop": cases.flop(config)}


def main(
    to: Annotated[Path | None, typer.Option("--json", help="Write the results to this JSON file.")] = None,
) -> None:
    """Time training steps on this machine's cores; some minutes."""
    began = time.monotonic()
    os.environ.pop("NUMBA_NUM_THREADS", None)  # every side says how many threads it has
    found = {"machine": machine.versions(), "networks": {}}
    for name, config in {**NETWORKS, "Stable Diffusion 1.x": cases.STABLE}.items():
        found["networks"][name] = facts_of(config)
    found |= measure(NETWORKS, BATCHES, machine.cores())
    found["seconds"] = time.monotonic() - began
    console = Console(soft_wrap=True)
    for row in found["steps"]:
        times = ", ".join(f"{min(seconds):.4f}" for seconds in row["seconds"])
        console.print(f"{row['network']}, batch {row['batch']}: {times} s")
    if to is not None:
        to.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    typer.run(main)
