"""Convolution, first rung: the formula as six loops, one multiplication at a time.

    y[n, p, q, o] = the sum over i, j, c of x[n, p + i - 1, q + j - 1, c] w[o, i, j, c]       zero padding

The compiler may not reorder a floating-point sum, so each addition waits for the previous one: no SIMD, one thread.
"""

import numpy as np
from minidiff_kernels.cpu.memory import empty
from numba import njit


def conv2d(x, w):
    """y (N, H, W, O) of x (N, H, W, C) and w (O, 3, 3, C), with padding 1."""
    y = empty((*x.shape[:3], len(w)))
    _loops(x, w, y)
    return y


@njit
def _loops(x, w, y):
    (_, H, W, C), O = x.shape, len(w)
    for n, p, q in np.ndindex(y.shape[:3]):
        for o in range(O):
            total = np.float32(0)
            for i in range(max(0, 1 - p), min(3, H + 1 - p)):
                for j in range(max(0, 1 - q), min(3, W + 1 - q)):
                    for c in range(C):
                        total += x[n, p + i - 1, q + j - 1, c] * w[o, i, j, c]
            y[n, p, q, o] = total
