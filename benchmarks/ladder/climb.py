"""Times every rung of every ladder, beside PyTorch where it is installed: `make ladder`.

The rungs of a ladder and PyTorch run in turn in one process, on the same inputs and the same number of threads; only
the naive loop has one thread. Errors are relative root mean squares, against the reference in float64.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Annotated, Any

import attention1_matrix
import attention2_blocked
import conv1_naive
import conv2_im2col
import conv3_tiles
import conv4_winograd
import conv5_fused
import norm1_passes
import norm2_fused
import numpy as np
import threadpoolctl
import typer
from minidiff_kernels.cpu.memory import empty
from rich.console import Console
from rich.table import Table

from minidiff import machine
from minidiff.bench import measure, rivals
from minidiff.engine.backend import get_backend
from minidiff.errors import MinidiffError

PAUSE = 0.1  # seconds before each run: BLAS threads spin for up to 64 ms after their work
FACTS = ("processor", "threads", "vector width", "platform", "Python", "NumPy", "Numba", "BLAS", "torch")
TORCH = "PyTorch, channels_last"


@dataclass(frozen=True)
class Ladder:
    """An operation, its shapes, and the rungs: name -> function of the inputs, which returns a dict of results or one.

    op, settings   the same in minidiff.bench.rival
    work           operations by the plain formula ("FLOP"), or bytes of arrays read and written once ("B")
    """

    label: str
    op: str
    shapes: dict[str, tuple[int, ...]]
    settings: dict[str, Any]
    work: float
    unit: str
    rungs: dict[str, Callable]

    def inputs(self, dtype=np.float32) -> dict[str, np.ndarray]:
        """Normal inputs, the same values in both precisions."""
        rng = np.random.default_rng(0)
        return {name: rng.standard_normal(shape, np.float32).astype(dtype) for name, shape in self.shapes.items()}

    def reference(self, dtype=np.float64) -> dict[str, np.ndarray]:
        """All results by the library's reference."""
        return REFERENCES[self.op](get_backend("numpy"), **self.inputs(dtype))


def _conv(numpy, x, w):
    return {"y": numpy.conv2d(x, w, pad=(1, 1, 1, 1))}


def _group_norm_silu(numpy, dy, x, weight, bias):
    return norm1_passes.group_norm_silu(dy, x, weight, bias)


def _attention(numpy, do, q, k, v):
    o, lse = numpy.attention(q, k, v)
    return {"o": o} | dict(zip(("dq", "dk", "dv"), numpy.attention_backward(do, q, k, v, o, lse), strict=True))


REFERENCES = {"conv": _conv, "group_norm_silu": _group_norm_silu, "attention": _attention}


def convolution(N=32, side=32, C=64, O=64) -> Ladder:
    """3 x 3, padding 1."""
    rungs = {
        "naive loop": conv1_naive, "im2col": conv2_im2col, "register tiles": conv3_tiles,
        "Winograd": conv4_winograd, "Winograd, fused": conv5_fused,
    }  # fmt: skip
    shapes = {"x": (N, side, side, C), "w": (O, 3, 3, C)}
    label = f"convolution 3x3, {N} x {side} x {side} x {C} -> {O}"
    work = 2 * N * side * side * 9 * C * O
    settings = {"bias": None, "stride": 1, "pad": 1}
    return Ladder(label, "conv", shapes, settings, work, "FLOP", {n: f.conv2d for n, f in rungs.items()})


def normalisation(N=32, side=32, C=64) -> Ladder:
    """Forward and backward."""
    x = (N, side, side, C)
    rungs = {"passes": norm1_passes.group_norm_silu, "fused": norm2_fused.group_norm_silu}
    shapes = {"dy": x, "x": x, "weight": (C,), "bias": (C,)}
    label = f"GroupNorm + SiLU and its gradients, {N} x {side} x {side} x {C}"
    settings = {"groups": 32, "eps": 1e-5}
    return Ladder(label, "group_norm_silu", shapes, settings, 5 * 4 * prod(x), "B", rungs)


def attention(N=16, T=1024, heads=2, D=32) -> Ladder:
    """Forward and backward: two products, then four; recomputed products are not counted."""
    q = (N, T, heads, D)
    rungs = {"whole matrix": attention1_matrix.attention, "blocked": attention2_blocked.attention}
    label = f"attention and its gradients, {N} x {T} tokens, {heads} heads of {D}"
    work = 6 * 2 * N * heads * T * T * D
    return Ladder(label, "attention", dict.fromkeys(("do", "q", "k", "v"), q), {}, work, "FLOP", rungs)


def named(results) -> dict[str, np.ndarray]:
    """The results of a rung by name; a convolution has one."""
    return results if isinstance(results, dict) else {"y": results}


def pooled(a: np.ndarray) -> np.ndarray:
    """A copy in the pool's memory, aligned to a cache line, as torch's is."""
    copy = empty(a.shape)
    copy[...] = a
    return copy


def error(results, expected: dict[str, np.ndarray]) -> float:
    """The largest of the relative rms errors of the results."""
    found = named(results)
    return max(
        float(np.sqrt(np.square(found[name] - want).mean() / np.square(want).mean())) for name, want in expected.items()
    )


def climb(ladder: Ladder, torch) -> list[dict[str, Any]]:
    """Each rung, then torch if given: name, ms (minimum and median), rate, ratios and error."""
    inputs, expected = {name: pooled(a) for name, a in ladder.inputs().items()}, ladder.reference()
    runs = {name: partial(rung, **inputs) for name, rung in ladder.rungs.items()}
    errors = {name: error(run(), expected) for name, run in runs.items()}
    if torch is not None:
        kind = torch.KINDS["channels_last"]
        tensors = {name: kind.tensor(name, a, kind.dtype) for name, a in inputs.items()}
        runs[TORCH] = torch.OPS[ladder.op](kind, **tensors, **ladder.settings)
        errors[TORCH] = error({name: torch.host(name, a) for name, a in runs[TORCH]().items()}, expected)
    seconds = measure.in_turn(runs, pause=PAUSE)
    names, rows = list(ladder.rungs), []
    for name, times in seconds.items():
        row = {"name": name, "ms": [1e3 * f(times) for f in (min, statistics.median)], "rounds": len(times)}
        row |= {"rate": ladder.work / min(times), "error": errors[name]}
        if name in names[1:]:
            row["before"] = ratios(seconds[names[names.index(name) - 1]], times)
        if torch is not None and name != TORCH:
            row["torch"] = ratios(seconds[TORCH], times)
        rows.append(row)
    return rows


def ratios(theirs: list[float], ours: list[float]) -> list[float]:
    """Speedup of ours over theirs: by the minima, and by the medians."""
    return [f(theirs) / f(ours) for f in (min, statistics.median)]


def table(ladder: Ladder, rows: list[dict[str, Any]]) -> Table:
    """One ladder. Pairs of values are of minimum and median."""
    rate = {"FLOP": "GFLOP/s", "B": "GB/s"}[ladder.unit]
    table = Table(title=ladder.label, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for column in ("ms", rate, "to the rung before", "to torch", "error"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        pairs = [" | ".join(f"{n:.2f}" for n in row.get(key, ())) for key in ("before", "torch")]
        times = " | ".join(f"{ms:.2f}" for ms in row["ms"])
        table.add_row(row["name"], times, f"{row['rate'] / 1e9:.1f}", *pairs, f"{row['error']:.1e}")
    table.width = Console(width=1000).measure(table).maximum  # not truncated in a narrow terminal
    return table


def open_torch():
    """minidiff.bench.rival, or None without torch; the reason for None; facts about the machine."""
    try:
        facts, (torch, note) = rivals.open_rival(["torch"], None).facts, (_rival(), None)
    except MinidiffError as missing:
        facts, (torch, note) = rivals.open_rival(["numpy"], None).facts, (None, str(missing))
    threadpoolctl.threadpool_limits(machine.cores(), "blas")  # the NumPy rungs get as many threads as the others
    return torch, note, {name: facts[name] for name in FACTS if name in facts}


def _rival():
    from minidiff.bench import rival

    return rival


def main(
    to: Annotated[Path | None, typer.Option("--json", help="Write the results to this JSON file.")] = None,
) -> None:
    """Time all ladders; about a minute."""
    console = Console()
    torch, note, facts = open_torch()
    console.print(*(f"{name}: {value}" for name, value in facts.items()), note or "", sep="\n")
    found = []
    for ladder in (convolution(), normalisation(), attention()):
        rows = climb(ladder, torch)
        console.print(table(ladder, rows), "", soft_wrap=True)
        found.append({"label": ladder.label, "op": ladder.op, "unit": f"{ladder.unit}/s", "rows": rows})
    if to is not None:
        to.write_text(json.dumps({"machine": facts, "ladders": found}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
