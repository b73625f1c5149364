"""Elementwise activations and addition, sums that undo broadcasting, and embedding lookup."""

from math import pi, prod

import numpy as np
from numba import prange

from .exponential import exp, normal_cdf, sigmoid
from .exponential import silu as silu_of
from .jit import helper, kernel
from .memory import empty
from .simd import LANES, load_like, store_value, zeros
from .streaming import exceed_caches, store_result

HALF = np.float32(0.5)
INV_SQRT_2PI = np.float32((2 * pi) ** -0.5)
BLOCK = 4096  # values in one task of a thread
CHUNK = 64  # terms of a sum in float32; the sums of chunks are added in float64
zero = np.float32(0)


def silu(x):
    """y = x sigmoid(x), any shape."""
    y = empty(x.shape)
    _silu(x.ravel(), y.ravel(), exceed_caches(x, y))
    return y


def silu_backward(dy, x):
    """dx = dy s (1 + x (1 - s)), s = sigmoid(x)."""
    dx = empty(x.shape)
    _silu_backward(dy.ravel(), x.ravel(), dx.ravel(), exceed_caches(dy, x, dx))
    return dx


def gelu(x):
    """y = x Phi(x), any shape; Phi is the standard normal distribution function."""
    y = empty(x.shape)
    _gelu(x.ravel(), y.ravel())
    return y


def gelu_backward(dy, x):
    """dx = dy (Phi(x) + x phi(x))."""
    dx = empty(x.shape)
    _gelu_backward(dy.ravel(), x.ravel(), dx.ravel())
    return dx


def geglu(x):
    """y = h gelu(gate), h and gate the halves of x's last axis: (..., 2C) -> (..., C)."""
    C = x.shape[-1] // 2
    y = empty((*x.shape[:-1], C))
    _geglu(x.ravel(), y.reshape(-1, C), exceed_caches(x, y) and C % LANES == 0)
    return y


def geglu_backward(dy, x, y=None):
    """dx (..., 2C): dy gelu(gate), then dy h (Phi(gate) + gate phi(gate)); in y, which may be dy, the output."""
    dx, C = empty(x.shape), dy.shape[-1]
    flags = y is not None, exceed_caches(dy, x, dx) and C % LANES == 0
    _geglu_backward(dy.reshape(-1, C), x.ravel(), dx.ravel(), (dy if y is None else y).ravel(), flags)
    return dx


def add(a, b):
    """a + b, two arrays of one shape."""
    y = empty(a.shape)
    _add(a.ravel(), b.ravel(), y.ravel(), exceed_caches(a, b, y))
    return y


def sum_to(dy, shape):
    """dy summed over every axis along which `shape` was broadcast; the result has that shape."""
    target, summed = (1,) * (dy.ndim - len(shape)) + tuple(shape), None
    while dy.shape != target:  # one group of adjacent axes at a time
        first = next(i for i in range(dy.ndim) if dy.shape[i] != target[i])
        last = first
        while last + 1 < dy.ndim and target[last + 1] == 1:
            last += 1
        summed = empty(dy.shape[:first] + target[first : last + 1] + dy.shape[last + 1 :])
        before, after = prod(dy.shape[:first]), prod(dy.shape[last + 1 :])
        _sum_middle(dy.reshape(before, -1, after), summed.reshape(before, after))
        dy = summed
    return dy.reshape(shape) if summed is not None else dy.reshape(shape).copy()


def embedding(table, index):
    """y[n] = table[index[n]]; table (K, D), index (N,) int, y (N, D)."""
    y = empty((len(index), table.shape[1]))
    _gather(table, index, y)
    return y


def embedding_backward(dy, index, rows):
    """dtable (rows, D): dtable[index[n]] += dy[n]."""
    dtable = empty((rows, dy.shape[1]))
    _scatter(dy, index, dtable)
    return dtable


@helper
def _block(block, n):
    """The block's first index, the end of its whole vectors, and its end, of n values."""
    first = np.int64(block) * BLOCK
    last = min(first + BLOCK, n)
    return first, first + (last - first) // LANES * LANES, last


@helper
def _silu_part(x, y, first, last, step, past_caches, zero):
    for i in range(first, last, step):
        store_result(y, i, silu_of(load_like(x, i, zero)), past_caches)


@kernel
def _silu(x, y, past_caches):
    for block in prange((len(x) + BLOCK - 1) // BLOCK):
        first, whole, last = _block(block, len(x))
        _silu_part(x, y, first, whole, LANES, past_caches, zeros())
        _silu_part(x, y, whole, last, 1, False, zero)


@helper
def _silu_backward_part(dy, x, dx, first, last, step, past_caches, zero):
    one = np.float32(1)
    for i in range(first, last, step):
        z = load_like(x, i, zero)
        s = sigmoid(z)
        store_result(dx, i, load_like(dy, i, zero) * s * (one + z * (one - s)), past_caches)


@kernel
def _silu_backward(dy, x, dx, past_caches):
    for block in prange((len(x) + BLOCK - 1) // BLOCK):
        first, whole, last = _block(block, len(x))
        _silu_backward_part(dy, x, dx, first, whole, LANES, past_caches, zeros())
        _silu_backward_part(dy, x, dx, whole, last, 1, False, zero)


@kernel
def _gelu(x, y):
    for i in prange(len(x)):
        y[i] = x[i] * normal_cdf(x[i], exp(-HALF * x[i] * x[i]))


@kernel
def _gelu_backward(dy, x, dx):
    for i in prange(len(x)):
        gaussian = exp(-HALF * x[i] * x[i])
        dx[i] = dy[i] * (normal_cdf(x[i], gaussian) + x[i] * INV_SQRT_2PI * gaussian)


@helper
def _geglu_part(x, y, row, C, first, last, step, past_caches, zero):
    """Channels first to last of a row of y."""
    for c in range(first, last, step):
        i = 2 * row * C + c
        gate = load_like(x, i + C, zero)
        cdf = normal_cdf(gate, exp(-HALF * gate * gate))
        store_result(y, row * C + c, load_like(x, i, zero) * gate * cdf, past_caches)


@kernel
def _geglu(x, y, past_caches):
    (R, C), y = y.shape, y.ravel()
    for r in prange(R):
        row, whole = np.int64(r), C // LANES * LANES
        _geglu_part(x, y, row, C, 0, whole, LANES, past_caches, zeros())
        _geglu_part(x, y, row, C, whole, C, 1, False, zero)


@helper
def _geglu_backward_part(dy, x, dx, y, row, C, first, last, step, flags, zero):
    """Channels first to last of a row of both halves of dx; of y, too, if restore."""
    restore, past_caches = flags
    for c in range(first, last, step):
        i = 2 * row * C + c
        h, gate, gradient = load_like(x, i, zero), load_like(x, i + C, zero), load_like(dy, row * C + c, zero)
        gaussian = exp(-HALF * gate * gate)
        cdf = normal_cdf(gate, gaussian)
        activation = gate * cdf
        store_result(dx, i, gradient * activation, past_caches)
        store_result(dx, i + C, gradient * h * (cdf + gate * INV_SQRT_2PI * gaussian), past_caches)
        if restore:
            store_value(y, row * C + c, h * activation)


@kernel
def _geglu_backward(dy, x, dx, y, flags):
    (R, C), dy, (restore, _) = dy.shape, dy.ravel(), flags
    for r in prange(R):
        row, whole = np.int64(r), C // LANES * LANES
        _geglu_backward_part(dy, x, dx, y, row, C, 0, whole, LANES, flags, zeros())
        _geglu_backward_part(dy, x, dx, y, row, C, whole, C, 1, (restore, False), zero)


@helper
def _add_part(a, b, y, first, last, step, past_caches, zero):
    for i in range(first, last, step):
        store_result(y, i, load_like(a, i, zero) + load_like(b, i, zero), past_caches)


@kernel
def _add(a, b, y, past_caches):
    for block in prange((len(a) + BLOCK - 1) // BLOCK):
        first, whole, last = _block(block, len(a))
        _add_part(a, b, y, first, whole, LANES, past_caches, zeros())
        _add_part(a, b, y, whole, last, 1, False, zero)


@kernel
def _sum_middle(x, y):
    """y[b, a] = sum over s of x[b, s, a]."""
    B, S, A = x.shape
    for b in prange(B):
        total, part = np.zeros(A), np.empty(A, np.float32)
        for start in range(0, S, CHUNK):
            part[:] = 0
            for s in range(start, min(start + CHUNK, S)):
                for a in range(A):
                    part[a] += x[b, s, a]
            for a in range(A):
                total[a] += part[a]
        for a in range(A):
            y[b, a] = total[a]


@kernel
def _gather(table, index, y):
    for n in prange(len(index)):
        for d in range(y.shape[1]):  # not a slice: Numba compiles the message of an error for it, which takes a second
            y[n, d] = table[index[n], d]


@kernel
def _scatter(dy, index, dtable):
    """Threads split the columns, since several rows of dy may add to one row of dtable."""
    for d in prange(dy.shape[1]):
        dtable[:, d] = 0
        for n in range(len(index)):
            dtable[index[n], d] += dy[n, d]
