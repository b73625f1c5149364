"""What the ranks of a run agree on: program, processor and data at its start, weights at checkpoints, when to stop."""

import logging
import platform
import socket
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from statistics import median
from typing import Any

import numpy as np
import threadpoolctl
from llvmlite.binding import get_host_cpu_features
from minidiff_kernels.cpu import jit

import minidiff.ranks as ranks
from minidiff.errors import MinidiffError
from minidiff.training.config import TrainConfig
from minidiff.training.parallel.gradients import check_parts

log = logging.getLogger(__name__)

SLOW = 1.5  # times the median of the other ranks' time in a step
SLOW_STEPS = 20  # over which times are compared
SLOW_SECONDS = 0.01  # a step, at least: of a shorter one the times are noise
ELSEWHERE = ("threads", "data")  # fields of a configuration that may differ between machines


def check_programs() -> None:
    """Raises MinidiffError, with both values, if the ranks differ in what decides the bits of a result.

    That is the versions of minidiff, Python, NumPy and Numba, the sources of the kernels, and of the processors the
    vector instructions (AVX-512 or not, fused multiply-add or not) and what BLAS makes of them.
    """
    if ranks.size() > 1:
        features = get_host_cpu_features()
        blas = [library.get("architecture", "") for library in threadpoolctl.threadpool_info()]
        _check_equal({
            "minidiff": version("minidiff"),
            "Python": platform.python_version(),
            "NumPy": np.__version__,
            "Numba and the kernels": jit.cache_dir().name,
            "vector instructions": ", ".join(name for name in ("avx2", "fma", "avx512f") if features.get(name)),
            "BLAS": ", ".join(sorted(filter(None, blas))),
        })  # fmt: skip


def check_inputs(config: TrainConfig) -> None:
    """Raises MinidiffError if the ranks differ in configuration or data, or cannot share the parts of a batch.

    Datasets are compared by the fingerprint in the configuration, built-in ones by their names.
    """
    if ranks.size() > 1:
        options = {name: value for name, value in asdict(config).items() if name not in ELSEWHERE}
        data = options.pop("fingerprint") or config.data
        _check_equal({**options, "the data, by its fingerprint,": data})
        check_parts(config.accumulate)


def _check_equal(values: dict[str, Any]) -> None:
    """Raises MinidiffError, which names the first value that differs and the first rank where it does."""
    of_ranks = ranks.gather(values)
    for name, value in of_ranks[0].items():
        for r, others in enumerate(of_ranks):
            if others[name] != value:
                raise MinidiffError(f"{name} is {value!r} on rank 0 and {others[name]!r} on rank {r}: make them equal")


def check_identical(step: int, arrays: Iterable[np.ndarray]) -> None:
    """Raises MinidiffError, which names the ranks, if the arrays (weights, moments, averages) differ between ranks."""
    if ranks.size() > 1:
        digest = sha256()
        for a in arrays:
            digest.update(np.ascontiguousarray(a).data)
        digests = ranks.gather(digest.hexdigest())
        (usual, _), *others = Counter(digests).most_common()  # of equally frequent ones rank 0's
        if others:
            names = ", ".join(str(r) for r, own in enumerate(digests) if own != usual)
            raise MinidiffError(
                f"step {step}: the weights of rank {names} are no longer those of the others: check the memory and "
                "processor of its machine, and resume from the last checkpoint"
            )


class Pace:
    """Agrees after every step whether to stop, and finds a rank that is slower than the others."""

    def __init__(self) -> None:
        self.steps: deque[tuple[float, ...]] = deque(maxlen=SLOW_STEPS)  # seconds of work of each rank
        self.named: set[int] = set()
        self.restart()

    def restart(self) -> None:
        """The next step begins now."""
        self.start = self._worked()

    def _worked(self) -> float:
        """Seconds of work of this rank up to now: its waiting for others is left out."""
        return time.monotonic() - ranks.waited

    def agree(self, stop: bool) -> bool:
        """Whether any rank stops after this step; a message names a rank that has become slow, once."""
        if ranks.size() == 1:
            return stop
        of_ranks = ranks.gather([stop, self._worked() - self.start, socket.gethostname()])
        self.restart()
        stops, seconds, hosts = zip(*of_ranks, strict=True)
        self.steps.append(seconds)
        for r, own, others in _slow(self.steps):
            if r not in self.named:
                log.info(f"rank {r} on {hosts[r]} is slow: {own:.3g} s a step, the others {others:.3g} s")
                self.named.add(r)
        return any(stops)


def _slow(steps: Sequence[tuple[float, ...]]) -> Iterator[tuple[int, float, float]]:
    """The slow ranks in the last SLOW_STEPS steps, with the median of their own seconds and that of the others'."""
    if len(steps) == SLOW_STEPS:
        medians = [median(seconds) for seconds in zip(*steps, strict=True)]
        for r, own in enumerate(medians):
            others = median(medians[:r] + medians[r + 1 :])
            if own > SLOW * others and own - others > SLOW_SECONDS:
                yield r, own, others
