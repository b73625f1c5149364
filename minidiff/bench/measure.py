"""Interleaved timing of both sides, their errors against float64, and the machine's peak rates."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numba
import numpy as np
from minidiff_kernels.cpu import jit, simd
from numba import prange

from minidiff import machine
from minidiff.bench import ours
from minidiff.bench.cases import Case
from minidiff.compilation import compile_ahead
from minidiff.engine.backend import Backend, get_backend
from minidiff.errors import MinidiffError

SECONDS = 1.0  # a case is timed for so long,
MIN_ROUNDS = 5  # but for at least
MAX_ROUNDS = 200  # and at most so many rounds
FLOAT64 = "float64"
OURS_BFLOAT16 = "ours bfloat16"
PRECISIONS = "float32", "bfloat16"
# Seconds before a run, in which the spinning threads of other sides go to sleep: GNU's OpenMP takes a few milliseconds,
# other processes more.
PAUSE, PAUSE_OF_PROCESSES = 0.01, 0.1
SHORT = 0.05  # seconds: a shorter run is timed at once after another, which wakes its side's threads


class Side(NamedTuple):
    """A function to run, and host(name, result), which converts a result to a NumPy array in our memory order.

    end: what ends the process that `run` asks; None: it runs in this one.
    """

    run: Callable[[], Any]
    host: Callable[[str, Any], np.ndarray]
    end: Callable[[], None] | None = None


@dataclass(frozen=True, eq=False)
class Rival:
    """What we compare with: torch, TensorFlow and OpenVINO, or our own NumPy reference.

    modes      (op, compiled) -> its modes for an operation (memory layout, precision), with "compiled" if compiled
    prepare    (mode, case, inputs) -> a Side; mode "float64" gives the true values
    facts      the machine and the versions of libraries, for the report
    pause      seconds of sleep before each run
    """

    name: str
    modes: Callable[[str, bool], list[str]]
    prepare: Callable[[str, Case, dict[str, np.ndarray]], Side]
    facts: Mapping[str, Any]
    pause: float = PAUSE


def compile_for(chosen: Iterable[Case]) -> None:
    """Compile the kernels of the cases that are chosen, unless the cache holds kernels of these sources."""

    def run_all() -> None:
        for case in chosen:
            our_side(get_backend("numba"), case, case.inputs()).run()

    if not machine.compiled():
        compile_ahead("numba", run_all)


def _bfloat16_side(case: Case, inputs: dict[str, np.ndarray]) -> Side:
    return Side(ours.bfloat16(case.op, inputs, case.settings), lambda name, a: a)


def our_side(backend: Backend, case: Case, inputs: dict[str, np.ndarray]) -> Side:
    run = ours.prepare(backend, case.op, inputs, case.settings)
    return Side(run, lambda name, a: np.asarray(backend.to_numpy(a)))


@dataclass(frozen=True)
class Row:
    """The measurements of a case: seconds of every round by side, relative rms errors by result and side.

    peer: the rival's mode to compare with; None: its fastest in float32.
    """

    case: Case
    seconds: dict[str, list[float]]
    errors: dict[str, dict[str, float]]
    peer: str | None = None

    @property
    def rival(self) -> str:
        """The rival's mode that we are compared with."""
        others = (side for side in self.seconds if side != "ours" and "bfloat16" not in side)
        return self.peer or min(others, key=lambda side: min(self.seconds[side]))

    def ratio(self, statistic: Callable[[list[float]], float]) -> float:
        """The rival's time divided by ours, by the best round (min) or the median."""
        return statistic(self.seconds[self.rival]) / statistic(self.seconds["ours"])

    @property
    def rate(self) -> float:
        """Our work per second in the best round."""
        return self.case.work / min(self.seconds["ours"])


def measure(
    case: Case, rival: Rival, compiled: bool = False, rounds: int | None = None, backend: Backend | None = None
) -> Row:
    """Times and errors of a case on our side (backend "numba" by default) and in every mode of the rival."""
    backend = backend or get_backend("numba")
    bfloat16 = backend.name == "numba" and case.op in ("network", "large_network")
    errors = relative_errors(case.error_case or case, rival, backend, bfloat16)
    seconds = {}
    for precisions in (
        [("float32",), ("bfloat16",)] if case.op == "large_network" else [PRECISIONS]
    ):  # for lack of memory
        with ExitStack() as stack:
            timed = dict(_ended(stack, sides(case, rival, backend, compiled, bfloat16, precisions)))
            pause = PAUSE_OF_PROCESSES if any(side.end for side in timed.values()) else rival.pause
            seconds |= in_turn({name: side.run for name, side in timed.items()}, rounds, pause)
    return Row(case, seconds, errors)


def _ended(stack: ExitStack, found: Iterable[tuple[str, Side]]) -> Iterator[tuple[str, Side]]:
    """The sides; their processes end with the stack."""
    for name, side in found:
        if side.end:
            stack.callback(side.end)
        yield name, side


@cache
def relative_errors(case: Case, rival: Rival, backend: Backend, bfloat16: bool = False) -> dict[str, dict[str, float]]:
    """By result and side: rms error relative to the rms of the true value, the rival's in float64."""
    truth = rival.prepare(FLOAT64, case, case.inputs())
    want = {result: truth.host(result, a) for result, a in truth.run().items()}
    del truth  # of Stable Diffusion's size 7 GB
    found: dict[str, dict[str, float]] = {result: {} for result in want}
    for side_of in sides(case, rival, backend, bfloat16=bfloat16):
        with ExitStack() as stack:
            ((name, side),) = _ended(stack, [side_of])
            for result, a in side.run().items():
                difference = side.host(result, a).astype(np.float64) - want[result]
                found[result][name] = float(np.sqrt(np.square(difference).mean() / np.square(want[result]).mean()))
        del side_of, side  # before the next is built
    return found


def sides(
    case: Case,
    rival: Rival,
    backend: Backend,
    compiled: bool = False,
    bfloat16: bool = False,
    precisions: tuple[str, ...] = PRECISIONS,
) -> Iterator[tuple[str, Side]]:
    """("ours", our side), then (mode, side) for every mode of the rival, each with its own copy of the inputs.

    bfloat16: ours in bfloat16 comes second. precisions: those of the sides.
    """
    inputs = case.inputs()
    builders = {"ours": partial(our_side, backend, case, inputs)}
    if bfloat16:
        builders[OURS_BFLOAT16] = partial(_bfloat16_side, case, inputs)
    builders |= {mode: partial(rival.prepare, mode, case, inputs) for mode in rival.modes(case.op, compiled)}
    for name, build in builders.items():
        if ("bfloat16" if "bfloat16" in name else "float32") in precisions:
            yield name, build()


def in_turn(
    runs: Mapping[str, Callable[[], Any]], rounds: int | None = None, pause: float = 0
) -> dict[str, list[float]]:
    """Seconds of every round, interleaved (A B A B) so that other load affects all alike, after two warm-up rounds.

    Within a network an operation finds its library's threads awake. So a side whose runs are SHORT has two in each
    round, of which the second is timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    first = {name: min(_seconds(run), _seconds(run)) for name, run in runs.items()}
    started, done = time.perf_counter(), 0
    while done < (rounds or MIN_ROUNDS) or (
        not rounds and done < MAX_ROUNDS and time.perf_counter() < started + SECONDS
    ):
        for name, run in runs.items():
            time.sleep(pause)
            if first[name] < SHORT:
                run()
            seconds[name].append(_seconds(run))
        done += 1
    return seconds


def _seconds(run: Callable[[], Any]) -> float:
    """The wall time of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@jit.kernel
def _multiply_add(arrays, iterations):
    """Ten independent chains of s = s x + y per thread, in registers; arrays (threads, at least 12 SIMD vectors)."""
    for thread in prange(len(arrays)):
        a = arrays[thread]
        x, y = simd.load(a, 10 * simd.LANES), simd.load(a, 11 * simd.LANES)
        s0, s1, s2 = simd.load(a, 0), simd.load(a, simd.LANES), simd.load(a, 2 * simd.LANES)
        s3, s4, s5 = simd.load(a, 3 * simd.LANES), simd.load(a, 4 * simd.LANES), simd.load(a, 5 * simd.LANES)
        s6, s7, s8 = simd.load(a, 6 * simd.LANES), simd.load(a, 7 * simd.LANES), simd.load(a, 8 * simd.LANES)
        s9 = simd.load(a, 9 * simd.LANES)
        for _ in range(iterations):
            s0, s1, s2, s3, s4 = s0 * x + y, s1 * x + y, s2 * x + y, s3 * x + y, s4 * x + y
            s5, s6, s7, s8, s9 = s5 * x + y, s6 * x + y, s7 * x + y, s8 * x + y, s9 * x + y
        simd.store(a, 0, s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9)


@jit.kernel
def _copy(destination, source):
    for i in prange(len(destination)):
        destination[i] = source[i]


def peaks() -> dict[str, float]:
    """Peak rates of the threads in use, "FLOP" and "B" per second, measured for about 0.3 s each.

    Multiply-adds in registers, and copying a large array, where bytes read and bytes written count.
    Raises MinidiffError if the compiler is disabled.
    """
    if not jit.ENABLED:
        raise MinidiffError("NUMBA_DISABLE_JIT is set, which replaces the kernels by the NumPy reference: unset it")
    threads = numba.get_num_threads()
    iterations = 1 << 20
    length = 1 << 26
    arrays = np.random.default_rng(0).random((threads, 12 * simd.LANES), np.float32) / 2
    source = np.ones(length, np.float32)
    destination = np.zeros(length, np.float32)
    work = {
        "FLOP": (2.0 * 10 * simd.LANES * iterations * threads, lambda: _multiply_add(arrays, iterations)),
        "B": (2.0 * source.nbytes, lambda: _copy(destination, source)),
    }
    return {unit: amount / _best(run) for unit, (amount, run) in work.items()}


def _best(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of as many runs as fit into 0.3 s, after one warm-up run."""
    run()
    end, best = time.perf_counter() + 0.3, float("inf")
    while time.perf_counter() < end:
        best = min(best, _seconds(run))
    return best
