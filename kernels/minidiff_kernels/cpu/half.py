"""Weights that are stored in 16 bits. Numba has no float16 on a CPU: arrays hold its bits as uint16."""

import numpy as np
from numba import prange

from .jit import kernel
from .memory import empty
from .simd import LANES, load, load_one, store

CHUNK = 256 * LANES  # values


def widen(a):
    """float16 -> float32, any shape."""
    y = empty(a.shape)
    _widen(a.reshape(-1).view(np.uint16), y.reshape(-1))
    return y


def pack(w):
    """w itself, as in the reference."""
    return w


@kernel
def _widen(half, y):
    for chunk in prange((len(y) + CHUNK - 1) // CHUNK):
        start, end = np.int64(chunk) * CHUNK, min(np.int64(chunk) * CHUNK + CHUNK, len(y))
        whole = end - (end - start) % LANES
        for i in range(start, whole, LANES):
            store(y, i, load(half, i))
        for i in range(whole, end):
            y[i] = load_one(half, i)
