"""Weights that are stored in 16 bits. Numba has no float16 on a CPU: the bits are moved as integers."""

import numpy as np
from numba import prange

from .jit import helper, kernel
from .memory import empty

CHUNK = 4096  # values; their 16 KB stay in L1 between the two loops
SIGN, REST, EXPONENT = np.uint32(0x8000), np.uint32(0x7FFF), np.uint32(0x7C00)
SIXTEEN, THIRTEEN = np.uint32(16), np.uint32(13)
ALL_ONES = np.uint32(0x7F800000)  # float32's exponent of inf and NaN
REBIAS = np.float32(2.0**112)  # exponents are stored with an offset: 15 in float16, 127 in float32


def widen(a):
    """float16 -> float32, any shape."""
    y = empty(a.shape)
    flat = y.reshape(-1)
    _widen(a.reshape(-1).view(np.uint16), flat.view(np.uint32), flat)
    return y


def pack(w):
    """w itself, as in the reference."""
    return w


@kernel
def _widen(half, bits, y):
    """`bits` and `y` are the same memory, as integers and as float32."""
    for chunk in prange(-(-len(half) // CHUNK)):
        part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        _move(half[part], bits[part])
        _scale(y[part])


@helper
def _move(half, bits):
    """The fields of float16, at the place of float32's."""
    for i in range(len(half)):
        h = np.uint32(half[i])
        moved = ((h & SIGN) << SIXTEEN) | ((h & REST) << THIRTEEN)
        bits[i] = moved | ALL_ONES if (h & EXPONENT) == EXPONENT else moved


@helper
def _scale(y):
    for i in range(len(y)):
        y[i] *= REBIAS  # exact, of numbers below float16's normal range too
