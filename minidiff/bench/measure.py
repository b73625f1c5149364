"""Times of several programs in turn, their errors against float64, and the most that this machine can do."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from minidiff_kernels.cpu import jit, simd
from numba import prange

from minidiff.bench import ours
from minidiff.bench.cases import Case
from minidiff.engine.backend import Backend, get_backend
from minidiff.errors import MinidiffError
from minidiff.runs import machine

SECONDS, LEAST, MOST = 1.0, 5, 200  # how long a case is timed, and the rounds that it gets at least and at most
FLOAT64 = "float64"


class Side(NamedTuple):
    """One program, ready to run, and how its results come into host memory as minidiff has them."""

    run: Callable[[], Any]
    host: Callable[[str, Any], np.ndarray]


@dataclass(frozen=True, eq=False)
class Rival:
    """Whom we are compared with.

    kinds      (op, compiled) -> the configurations in which it has an operation, the compiled one only if asked for
    prepare    (kind, case, inputs) -> a side; the kind "float64" is the truth
    facts      the machine and what is installed, to be told beside every number
    pause      seconds before each run, in which threads that spin go to sleep
    """

    name: str
    kinds: Callable[[str, bool], list[str]]
    prepare: Callable[[str, Case, dict[str, np.ndarray]], Side]
    facts: Mapping[str, Any]
    pause: float = 0


def open_rival(name: str, threads: int | None) -> Rival:
    """torch, or "numpy", our own reference, on as many threads as we: all cores if None.

    Raises MinidiffError for another name, for more threads than there are, if torch or diffusers is not installed.
    """
    if name not in ("torch", "numpy"):
        raise MinidiffError(f"nothing called {name!r} to compare with: choose torch or numpy")
    if name == "torch":
        _let_threads_spin()
    threads = machine.use_threads(threads, "numpy" if name == "numpy" else "numba")  # BLAS has them in the first case
    facts = machine.describe()  # it launches a kernel: Numba must have started its threads before torch is set up
    if name == "numpy":
        return Rival(name, lambda op, compiled: ["numpy"], _reference, facts, pause=0.05)
    try:
        from minidiff.bench import rival
    except ImportError as error:
        remedy = "pip install torch diffusers, or compare with our own reference: --against numpy"
        raise MinidiffError(f"torch and diffusers are needed ({error}): {remedy}") from None

    def prepare(kind: str, case: Case, inputs: dict[str, np.ndarray]) -> Side:
        return Side(rival.prepare(kind, case.op, inputs, case.settings), rival.host)

    return Rival(name, rival.kinds, prepare, facts | rival.set_up(threads))


def _let_threads_spin() -> None:
    """Take back what we told OpenMP, before it starts: threads wait as PyTorch, which shares it, has them wait.

    They spin, which is quickest where the cores are ours alone. Whoever has set OMP_WAIT_POLICY keeps it.
    """
    for name, value in jit.WAITING.items():
        if os.environ.get(name) == value:
            del os.environ[name]


def _reference(kind: str, case: Case, inputs: dict[str, np.ndarray]) -> Side:
    """The reference on the inputs, in float64 if that is the kind."""
    if kind == FLOAT64:
        inputs = {name: a.astype(np.float64) if a.dtype.kind == "f" else a for name, a in inputs.items()}
    return _own(get_backend("numpy"), case, inputs)


def _own(backend: Backend, case: Case, inputs: dict[str, np.ndarray]) -> Side:
    run = ours.prepare(backend, case.op, inputs, case.settings)
    return Side(run, lambda name, a: np.asarray(backend.to_numpy(a)))


@dataclass(frozen=True)
class Row:
    """What was measured of a case: seconds of every round by side; relative rms errors by result, then by side.

    peer: the side to compare with; None: the fastest in float32.
    """

    case: Case
    seconds: dict[str, list[float]]
    errors: dict[str, dict[str, float]]
    peer: str | None = None

    @property
    def rival(self) -> str:
        """The side whose ratio counts."""
        return self.peer or min(self.seconds.keys() - {"ours", "bfloat16"}, key=lambda side: min(self.seconds[side]))

    def ratio(self, statistic: Callable[[list[float]], float]) -> float:
        """How many times faster than the rival: by the best round (min) or the median."""
        return statistic(self.seconds[self.rival]) / statistic(self.seconds["ours"])

    @property
    def rate(self) -> float:
        """Our work in a second, in the best round."""
        return self.case.work / min(self.seconds["ours"])


def measure(
    case: Case, rival: Rival, compiled: bool = False, rounds: int | None = None, backend: Backend | None = None
) -> Row:
    """Time a case on our side (the backend "numba" if none is given) and on the rival's; find the errors of both."""
    backend = backend or get_backend("numba")
    found = errors(case.judged or case, rival, backend)
    runs = {name: side.run for name, side in sides(case, rival, backend, compiled)}
    return Row(case, in_turn(runs, rounds, rival.pause), found)


@cache
def errors(case: Case, rival: Rival, backend: Backend) -> dict[str, dict[str, float]]:
    """By result and side: the rms error relative to the rms of the truth, which is the rival in float64."""
    truth = rival.prepare(FLOAT64, case, case.inputs())
    want = {result: truth.host(result, a) for result, a in truth.run().items()}
    found: dict[str, dict[str, float]] = {result: {} for result in want}
    for name, side in sides(case, rival, backend):
        for result, a in side.run().items():
            off = side.host(result, a).astype(np.float64) - want[result]
            found[result][name] = float(np.sqrt(np.square(off).mean() / np.square(want[result]).mean()))
    return found


def sides(case: Case, rival: Rival, backend: Backend, compiled: bool = False) -> Iterator[tuple[str, Side]]:
    """("ours", our side), then every configuration of the rival, each with its own copy of the inputs."""
    inputs = case.inputs()
    yield "ours", _own(backend, case, inputs)
    for kind in rival.kinds(case.op, compiled):
        yield kind, rival.prepare(kind, case, inputs)


def in_turn(
    runs: Mapping[str, Callable[[], Any]], rounds: int | None = None, pause: float = 0
) -> dict[str, list[float]]:
    """Seconds of every round: A B A B, so that what else the machine does hits all alike. A first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    started, done = time.perf_counter(), 0
    while done < (rounds or LEAST) or (not rounds and done < MOST and time.perf_counter() < started + SECONDS):
        for name, run in runs.items():
            time.sleep(pause)
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
        done += 1
    return seconds


@jit.kernel
def _multiply_add(numbers, turns):
    """Ten chains of a <- a x + y on every thread, all in registers; numbers (threads, at least 12 vectors)."""
    for thread in prange(len(numbers)):
        a = numbers[thread]
        x, y = simd.load(a, 10 * simd.LANES), simd.load(a, 11 * simd.LANES)
        s0, s1, s2 = simd.load(a, 0), simd.load(a, simd.LANES), simd.load(a, 2 * simd.LANES)
        s3, s4, s5 = simd.load(a, 3 * simd.LANES), simd.load(a, 4 * simd.LANES), simd.load(a, 5 * simd.LANES)
        s6, s7, s8 = simd.load(a, 6 * simd.LANES), simd.load(a, 7 * simd.LANES), simd.load(a, 8 * simd.LANES)
        s9 = simd.load(a, 9 * simd.LANES)
        for _ in range(turns):
            s0, s1, s2, s3, s4 = s0 * x + y, s1 * x + y, s2 * x + y, s3 * x + y, s4 * x + y
            s5, s6, s7, s8, s9 = s5 * x + y, s6 * x + y, s7 * x + y, s8 * x + y, s9 * x + y
        simd.store(a, 0, s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9)


@jit.kernel
def _copy(to, source):
    for i in prange(len(to)):
        to[i] = source[i]


def peaks() -> dict[str, float]:
    """The most that the threads in use can do, tried for about 0.3 s each: "FLOP" and "B" a second.

    Bytes are those read and those written when a large array is copied, as kernels' bytes are counted.
    Raises MinidiffError if the compiler is switched off.
    """
    if not jit.ENABLED:
        raise MinidiffError("NUMBA_DISABLE_JIT is set, and without its compiler nothing here is fast: unset it")
    threads, turns, length = numba.get_num_threads(), 1 << 20, 1 << 26
    numbers = np.random.default_rng(0).random((threads, 12 * simd.LANES), np.float32) / 2
    source, to = np.ones(length, np.float32), np.zeros(length, np.float32)
    work = {
        "FLOP": (2.0 * 10 * simd.LANES * turns * threads, lambda: _multiply_add(numbers, turns)),
        "B": (2.0 * source.nbytes, lambda: _copy(to, source)),
    }
    return {unit: amount / _best(run) for unit, (amount, run) in work.items()}


def _best(run: Callable[[], Any]) -> float:
    """Seconds of the best of as many runs as fit into 0.3 s, after one that warms up."""
    run()
    end, best = time.perf_counter() + 0.3, float("inf")
    while (start := time.perf_counter()) < end:
        run()
        best = min(best, time.perf_counter() - start)
    return best
