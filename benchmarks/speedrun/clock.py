"""Reference minutes: time weighted with the speed of the machine's matrix product.

On a machine that multiplies matrices half as fast as the reference machine, or while other programs take half of its
cores, a minute counts as half. So a faster kernel gains and a slower machine does not lose. The product is NumPy's, not
the library's: its rate does not change with the kernels that are compared.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
from threadpoolctl import threadpool_limits

# Median of 200 products by two threads on two idle cores of an AMD EPYC (Zen 5, AVX-512), NumPy's own OpenBLAS.
REFERENCE_RATE = 482e9  # FLOP/s
SIDE, PRODUCTS = 1024, 40  # of the matrices; products in a measurement, about 0.2 seconds
EVERY = 20.0  # seconds between two measurements


def product_rate(threads: int) -> float:
    """FLOP/s of the float32 product of two matrices of SIDE x SIDE by NumPy: the median of PRODUCTS."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, SIDE, SIDE), dtype=np.float32)
    out, seconds = np.empty_like(a), []
    with threadpool_limits(threads, "blas"):
        for _ in range(PRODUCTS + 1):
            start = time.perf_counter()
            np.matmul(a, b, out=out)
            seconds.append(time.perf_counter() - start)
    return 2 * SIDE**3 / median(seconds[1:])


class Clock:
    """Counts reference minutes from its making on; the measurements themselves do not count.

    rate   measures the machine's rate, FLOP/s
    spent  reference minutes of a run before it was interrupted
    now    the time in seconds
    """

    def __init__(self, rate: Callable[[], float], spent: float = 0.0, now: Callable[[], float] = time.monotonic):
        self._rate, self._now = rate, now
        self._counted = spent  # up to the last measurement
        self.rates: list[float] = [rate()]
        self._since = now()

    @property
    def minutes(self) -> float:
        """Reference minutes so far; since the last measurement, at its rate."""
        return self._counted + self._since_then() / 60 * self.rates[-1] / REFERENCE_RATE

    def measure(self, every: float = 0.0) -> None:
        """Measure the rate again, unless that was less than `every` seconds ago; until then the mean of both held."""
        seconds = self._since_then()
        if seconds >= every:
            self.rates.append(self._rate())
            self._counted += seconds / 60 * sum(self.rates[-2:]) / 2 / REFERENCE_RATE
            self._since = self._now()

    def _since_then(self) -> float:
        return self._now() - self._since
