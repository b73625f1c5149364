"""A model of the time of a data-parallel training step, fitted to the measurements of measure_scaling.py.

    T(n, N) = c (a + b N / n) + max(tail, X - h c (a + b N / n))        n machines or ranks, N images in all
    X       = 2 (n - 1) / n  G / B  +  2 log2(n) k L                     the exchange

a + b N  a step of N images on one of them: a does not depend on the batch, as the optimiser's update
c        how much slower the cores of one machine are when all compute; 1 for machines of their own
h        backward's share of it, under which the exchange is hidden, but for the tail: that of the last bucket
G        bytes of the gradient; k buckets, L seconds for a message, B bytes a second

Each of n sends 2 (n - 1) / n G bytes in a reduce-scatter and an all-gather, the least that is possible (Patarasu & Yuan
2009); recursive halving and doubling do it in log2(n) messages each (Thakur, Rabenseifner & Gropp 2005), rounded up.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minidiff.training.parallel.gradients import BUCKET

EXCHANGES = ("scatter", "gather", "all-reduce")
GIGABIT = 1e9 / 8  # bytes a second
LATENCY = 20e-6  # seconds of a message between machines: an assumption, of Ethernet through the kernel

Interval = tuple[float, float]


@dataclass(frozen=True)
class Costs:
    """The model's constants: a, b in seconds, G in bytes, h; of the exchange B in bytes a second and L in seconds."""

    a: float
    b: float
    G: float
    h: float
    B: float = math.inf
    L: float = 0.0
    c: float = 1.0

    def compute(self, n: int, N: float) -> float:
        """Seconds of forward, backward and update of N / n images."""
        return self.c * (self.a + self.b * N / n)

    def exchange(self, n: int, G: float | None = None) -> float:
        """X, seconds; of G bytes, by default of the whole gradient."""
        if n == 1:
            return 0.0
        G = self.G if G is None else G
        buckets = max(1, round(G / (4 * BUCKET)))
        return 2 * (n - 1) / n * G / self.B + 2 * math.ceil(math.log2(n)) * buckets * self.L

    def exposed(self, n: int, N: float) -> float:
        """Seconds of the exchange that backward does not hide."""
        tail = self.exchange(n, min(4 * BUCKET, self.G))
        return max(tail, self.exchange(n) - self.h * self.compute(n, N))

    def step(self, n: int, N: float) -> float:
        """T(n, N), seconds."""
        return self.compute(n, N) + self.exposed(n, N)

    def efficiency(self, n: int, N: float) -> float:
        """Images a second, divided by those of n machines that exchange nothing and compute N / n images each."""
        return self.compute(n, N) / self.step(n, N)

    def speedup(self, n: int, N: float) -> float:
        """How much faster the same batch is than on one machine."""
        return self.step(1, N) / self.step(n, N)

    def hiding_batch(self, n: int) -> float:
        """Images for each machine from which on backward hides all of the exchange but the tail."""
        return max(0.0, (self.exchange(n) / self.h / self.c - self.a) / self.b)


def read(path: str | Path) -> dict[str, Any]:
    """The measurements in a file."""
    return json.loads(Path(path).read_text())


def side_of(found: dict[str, Any], processes: int, threads: int, reduction: str = "exact") -> int:
    """The index of a side."""
    return found["sides"].index({"processes": processes, "threads": threads, "reduction": reduction})


def cores(found: dict[str, Any]) -> int:
    """The number of cores that all sides but the first use."""
    return found["sides"][-1]["processes"] * found["sides"][-1]["threads"]


def least(found: dict[str, Any], network: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The batch sizes, and the least seconds of a step of a side."""
    rows = [row for row in found["steps"] if row["network"] == network]
    return np.array([row["batch"] for row in rows]), np.array([min(row["seconds"][side]) for row in rows])


def line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """a and b of a + b x, neither negative, with the least squares of relative errors."""
    (a, b), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], 1), np.ones(len(x)))
    if a < 0:
        a, b = 0.0, float((x / y).sum() / np.square(x / y).sum())
    return float(a), float(b)


def alone(found: dict[str, Any], network: str, threads: int) -> Costs:
    """The costs on one process of so many threads."""
    a, b = line(*least(found, network, side_of(found, 1, threads)))
    return Costs(a, b, 4.0 * found["networks"][network]["parameters"], backward_share(found))


def on_this_machine(found: dict[str, Any], network: str) -> Costs:
    """The costs of a rank a core, each with one thread: B and L by the measured all-reduce, c by the steps."""
    n = cores(found)
    seconds, size = np.array(found["exchange"]["seconds"]), np.array(found["exchange"]["bytes"], float)
    overhead, per_byte = line(size, seconds)
    costs = replace(alone(found, network, 1), B=2 * (n - 1) / n / per_byte, L=overhead / (2 * math.ceil(math.log2(n))))
    N, measured = least(found, network, side_of(found, n, 1))
    best = min(np.arange(0.8, 4, 0.002), key=lambda c: _error(replace(costs, c=float(c)), n, N, measured))
    return replace(costs, c=float(best))


def _error(costs: Costs, n: int, N: Iterable[float], measured: np.ndarray) -> float:
    """The sum of the squared relative errors of the model."""
    return float(np.square([costs.step(n, images) for images in N] / measured - 1).sum())


def intervals(events: list[list[Any]], names: Iterable[str]) -> list[Interval]:
    """The union of the events of these names, as disjoint intervals in their order."""
    union: list[Interval] = []
    for start, end in sorted((start, end) for name, _, start, end in events if name in names):
        if union and start <= union[-1][1]:
            union[-1] = union[-1][0], max(union[-1][1], end)
        else:
            union.append((start, end))
    return union


def length(union: list[Interval]) -> float:
    """Seconds of disjoint intervals."""
    return sum(end - start for start, end in union)


def common(one: list[Interval], other: list[Interval]) -> float:
    """Seconds that are in both of two sets of disjoint intervals."""
    return sum(max(0.0, min(b, d) - max(a, c)) for a, b in one for c, d in other)


def backward_share(found: dict[str, Any]) -> float:
    """h: backward's share of the time of forward, backward and update, the mean over the ranks of the time line."""
    shares = []
    for events in found["timeline"]["ranks"]:
        total = length(intervals(events, ("forward", "backward", "update")))
        shares.append(length(intervals(events, ("backward",))) / total)
    return sum(shares) / len(shares)


def hidden_share(found: dict[str, Any]) -> float:
    """The part of the time in which an exchange is under way that is under backward, on all ranks of the time line."""
    under, total = 0.0, 0.0
    for events in found["timeline"]["ranks"]:
        exchanged = intervals(events, EXCHANGES)
        under += common(exchanged, intervals(events, ("backward",)))
        total += length(exchanged)
    return under / total


def waited(found: dict[str, Any]) -> float:
    """Seconds between backward and update, in which a rank of the time line waits for the exchange: the most of all."""
    waits = []
    for events in found["timeline"]["ranks"]:
        ended = max(end for name, _, _, end in events if name == "backward")
        waits.append(length([(max(a, ended), b) for a, b in intervals(events, ("wait",)) if b > ended]))
    return max(waits)


def operations_per_second(found: dict[str, Any], network: str) -> float:
    """Floating-point operations a second of a step on all threads of this machine, at a large batch.

    The gradients by input and by weight each take as many operations as the forward pass.
    """
    return 3 * found["networks"][network]["flop"] / alone(found, network, cores(found)).b


def of_size(found: dict[str, Any], network: str, rate: float) -> Costs:
    """The costs of a network that was not timed, on a machine of so many operations a second."""
    facts = found["networks"][network]
    return Costs(0.0, 3 * facts["flop"] / rate, 4.0 * facts["parameters"], backward_share(found))
