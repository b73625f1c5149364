"""Nearest-neighbour upsampling and concatenation along the channels."""

from numba import prange

from .jit import kernel
from .memory import empty
from .simd import copy


def upsample_nearest(x):
    """Each pixel is repeated in a 2 x 2 block: x (N, H, W, C) -> y (N, 2H, 2W, C)."""
    N, H, W, C = x.shape
    y = empty((N, 2 * H, 2 * W, C))
    _upsample(x.reshape(N * H, W, C), y.reshape(N * H, 2, W, 2, C))
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
    _concat(a.ravel(), b.ravel(), y.ravel(), a.shape[-1], b.shape[-1])
    return y


def concat_backward(dy, channels):
    """da (..., channels) and db (..., remaining channels)."""
    da, db = empty((*dy.shape[:-1], channels)), empty((*dy.shape[:-1], dy.shape[-1] - channels))
    _split(dy.ravel(), da.ravel(), db.ravel(), da.shape[-1], db.shape[-1])
    return da, db


@kernel
def _upsample(x, y):
    rows, W, C = x.shape
    for r in prange(rows):
        for w in range(W):
            for i in range(2):
                for j in range(2):
                    for c in range(C):
                        y[r, i, w, j, c] = x[r, w, c]


@kernel
def _upsample_backward(dy, dx):
    rows, W, C = dx.shape
    for r in prange(rows):
        for w in range(W):
            for c in range(C):
                dx[r, w, c] = dy[r, 0, w, 0, c] + dy[r, 0, w, 1, c] + dy[r, 1, w, 0, c] + dy[r, 1, w, 1, c]


@kernel
def _concat(a, b, y, A, B):
    for p in prange(len(y) // (A + B)):
        copy(y, p * (A + B), a, p * A, A)
        copy(y, p * (A + B) + A, b, p * B, B)


@kernel
def _split(dy, da, db, A, B):
    for p in prange(len(dy) // (A + B)):
        copy(da, p * A, dy, p * (A + B), A)
        copy(db, p * B, dy, p * (A + B) + A, B)
