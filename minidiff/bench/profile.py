"""Where the time of a network or a training step goes: every operation of the backend, by its shapes."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import wraps
from math import prod
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from minidiff.bench import ours
from minidiff.bench.cases import Case
from minidiff.bench.report import UNITS
from minidiff.engine.backend import FAMILIES, get_backend

ROUNDS = 5
UNTIMED = {*FAMILIES["memory"]}


class Call(NamedTuple):
    """One call of an operation; work in the unit "FLOP" or "B", as in Case."""

    op: str
    shapes: str
    work: float
    unit: str
    seconds: float


def profile(case: Case, rounds: int | None = None) -> tuple[list[Call], float]:
    """The calls of one run on the Numba backend, each with its fastest time of all rounds, and seconds of the rest.

    The rest is what no operation of the backend computes: algebra in NumPy, the tape, Python.
    """
    calls: list[Call] = []
    numba = get_backend("numba")
    timed = {op: kernel if op in UNTIMED else _timed(op, kernel, calls) for op, kernel in numba.kernels.items()}
    run = ours.prepare(replace(numba, kernels=timed), case.op, case.inputs(), case.settings)
    run()  # compiles, and fills the memory pool
    found, rests = [], []
    for _ in range(rounds or ROUNDS):
        calls.clear()
        start = time.perf_counter()
        run()
        rests.append(time.perf_counter() - start - sum(call.seconds for call in calls))
        found.append(list(calls))
    return [min(same, key=lambda call: call.seconds) for same in zip(*found, strict=True)], min(rests)


def _timed(op: str, kernel: Callable[..., Any], calls: list[Call]) -> Callable[..., Any]:
    @wraps(kernel)
    def run(*arguments, **settings):
        start = time.perf_counter()
        results = kernel(*arguments, **settings)
        seconds = time.perf_counter() - start
        arrays = [a for a in arguments if getattr(a, "ndim", 0)]
        outputs = [a for a in (results if isinstance(results, tuple) else (results,)) if getattr(a, "ndim", 0)]
        shapes, work, unit = _described(op, arguments, arrays, outputs)
        calls.append(Call(op, shapes, work, unit, seconds))
        return results

    return run


def _described(op: str, arguments: tuple[Any, ...], arrays: list[Any], outputs: list[Any]) -> tuple[str, float, str]:
    """Shapes, work and its unit: the operations of the direct formula, or the bytes of every array read and written."""
    backward = op.endswith("_backward")
    if op.startswith("conv2d"):
        pixels, x, w = (arguments[0], *arguments[1:3]) if backward else (outputs[0], *arguments[:2])
        stride = arguments[3] if len(arguments) > 3 else 1
        products = 1 if not backward else 1 + (len(outputs) == 3)  # dx, dw, dbias
        return _convolution(x.shape, w.shape, stride), products * 2 * pixels.size * w[0].size, "FLOP"
    if op.startswith("attention"):
        q, k = arguments[1:3] if backward else arguments[:2]
        N, T, heads, D = q.shape
        products = 4 if backward else 2
        return f"{N} x {T} to {k.shape[1]}, {heads} x {D}", products * 2 * q.size * k.shape[1], "FLOP"
    return _sizes(arrays[0].shape), float(sum(a.nbytes for a in (*arrays, *outputs))), "B"


def _convolution(x: tuple[int, ...], w: tuple[int, ...], stride: int) -> str:
    """A 1x1 convolution of one row of pixels is a linear layer."""
    O, KH, KW, C = w
    image = f"{prod(x[:3])} rows" if x[:2] == (1, 1) else _sizes(x[:3])
    return f"{KH}x{KW} {f'/{stride} ' if stride > 1 else ''}{image} {C}->{O}"


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def table(case: Case, calls: list[Call], rest: float, peaks: Mapping[str, float]) -> Table:
    """Calls of the same operation and shapes together, the longest first, and the totals of the operations."""
    total = rest + sum(call.seconds for call in calls)
    table = Table(title=f"{case}, ms", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for column in ("calls", "ms", "of all", *UNITS.values(), "peak"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, same in _grouped(calls, lambda call: f"{call.op} {call.shapes}"):
        seconds, unit = sum(call.seconds for call in same), same[0].unit
        rate = sum(call.work for call in same) / seconds
        rates = (f"{rate / 1e9:.0f}" if column == unit else "" for column in UNITS)
        table.add_row(name, *_columns(len(same), seconds, total), *rates, f"{rate / peaks[unit]:.0%}")
    table.add_section()
    for op, same in _grouped(calls, lambda call: call.op):
        table.add_row(f"all {op}", *_columns(len(same), sum(call.seconds for call in same), total))
    table.add_row("outside of these", *_columns("", rest, total))
    table.add_row("together", *_columns(len(calls), total, total))
    table.width = Console(width=1000).measure(table).maximum  # a narrow window must not truncate numbers
    return table


def _columns(calls: int | str, seconds: float, total: float) -> tuple[str, str, str]:
    return str(calls), f"{1e3 * seconds:.2f}", f"{seconds / total:.1%}"


def _grouped(calls: list[Call], key: Callable[[Call], str]) -> Iterator[tuple[str, list[Call]]]:
    """The calls of each key, those that take longest together first."""
    groups: dict[str, list[Call]] = {}
    for call in calls:
        groups.setdefault(key(call), []).append(call)
    yield from sorted(groups.items(), key=lambda group: -sum(call.seconds for call in group[1]))
