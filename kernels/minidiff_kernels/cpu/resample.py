"""Nearest-neighbour upsampling and concatenation along the channels."""

import numpy as np
from numba import prange

from .jit import helper, kernel
from .memory import empty
from .simd import LANES, copy, load, load_like, zeros
from .streaming import exceed_caches, store_result

zero = np.float32(0)


def upsample_nearest(x):
    """Each pixel is repeated in a 2 x 2 block: x (N, H, W, C) -> y (N, 2H, 2W, C)."""
    N, H, W, C = x.shape
    y = empty((N, 2 * H, 2 * W, C))
    _upsample(x.reshape(N * H, W, C), y.ravel(), exceed_caches(x, y) and C % LANES == 0)
    return y


def upsample_nearest_backward(dy):
    """The sum of each 2 x 2 block: dy (N, 2H, 2W, C) -> dx (N, H, W, C)."""
    N, H2, W2, C = dy.shape
    dx = empty((N, H2 // 2, W2 // 2, C))
    _upsample_backward(dy.reshape(-1, 2, W2 // 2, 2, C), dx.reshape(-1, W2 // 2, C))
    return dx


def concat(a, b):
    """Channels of a, then channels of b: (..., A), (..., B) -> (..., A + B)."""
    y = empty((*a.shape[:-1], a.shape[-1] + b.shape[-1]))
    A, B = a.shape[-1], b.shape[-1]
    _concat(a.ravel(), b.ravel(), y.ravel(), A, B, _whole_vectors(A, B) and exceed_caches(a, b, y))
    return y


def concat_backward(dy, channels):
    """da (..., channels) and db (..., remaining channels)."""
    da, db = empty((*dy.shape[:-1], channels)), empty((*dy.shape[:-1], dy.shape[-1] - channels))
    A, B = da.shape[-1], db.shape[-1]
    _split(dy.ravel(), da.ravel(), db.ravel(), A, B, _whole_vectors(A, B) and exceed_caches(dy, da, db))
    return da, db


def _whole_vectors(A, B) -> bool:
    return A % LANES == 0 and B % LANES == 0


@helper
def _repeat(x, i, y, top, bottom, first, last, step, C, past_caches, zero):
    """Channels first to last of the pixel at x[i], to two pixels at y[top] and two at y[bottom]."""
    for c in range(first, last, step):
        value = load_like(x, i + c, zero)
        store_result(y, top + c, value, past_caches)
        store_result(y, top + C + c, value, past_caches)
        store_result(y, bottom + c, value, past_caches)
        store_result(y, bottom + C + c, value, past_caches)


@kernel
def _upsample(x, y, past_caches):
    (rows, W, C), x = x.shape, x.ravel()
    whole = C // LANES * LANES
    for r in prange(rows):
        for w in range(W):
            i, top = (np.int64(r) * W + w) * C, (2 * np.int64(r) * W + w) * 2 * C
            bottom = top + 2 * W * C
            _repeat(x, i, y, top, bottom, 0, whole, LANES, C, past_caches, zeros())
            _repeat(x, i, y, top, bottom, whole, C, 1, C, False, zero)


@kernel
def _upsample_backward(dy, dx):
    rows, W, C = dx.shape
    for r in prange(rows):
        for w in range(W):
            for c in range(C):
                dx[r, w, c] = dy[r, 0, w, 0, c] + dy[r, 0, w, 1, c] + dy[r, 1, w, 0, c] + dy[r, 1, w, 1, c]


@helper
def _copy(to, to0, source, source0, n, past_caches):
    """to[to0 : to0 + n] = source[source0 : source0 + n]; past_caches: n and to0 are multiples of LANES."""
    if past_caches:
        for i in range(0, n, LANES):
            store_result(to, to0 + i, load(source, source0 + i), True)
    else:
        copy(to, to0, source, source0, n)


@kernel
def _concat(a, b, y, A, B, past_caches):
    for p in prange(len(y) // (A + B)):
        _copy(y, p * (A + B), a, p * A, A, past_caches)
        _copy(y, p * (A + B) + A, b, p * B, B, past_caches)


@kernel
def _split(dy, da, db, A, B, past_caches):
    for p in prange(len(dy) // (A + B)):
        _copy(da, p * A, dy, p * (A + B), A, past_caches)
        _copy(db, p * B, dy, p * (A + B) + A, B, past_caches)
