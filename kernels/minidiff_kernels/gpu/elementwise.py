"""Operations that look at one number at a time, and the sums that undo broadcasting."""

from itertools import groupby
from math import prod

import numpy as np

from .launch import blocks_of, cp, launch
from .memory import empty


def silu(x):
    """y = x sigmoid(x), any shape."""
    y = empty(x.shape)
    launch("elementwise", "silu", blocks_of(x.size, 256), 256, x, y, x.size)
    return y


def silu_backward(dy, x):
    """dx = dy s (1 + x (1 - s)), s = sigmoid(x)."""
    dx = empty(x.shape)
    launch("elementwise", "silu_backward", blocks_of(x.size, 256), 256, dy, x, dx, x.size)
    return dx


def gelu(x):
    """y = x Phi(x), any shape; Phi(x) is how likely a normal number is below x."""
    y = empty(x.shape)
    launch("elementwise", "gelu", blocks_of(x.size, 256), 256, x, y, x.size)
    return y


def gelu_backward(dy, x):
    """dx = dy (Phi(x) + x phi(x)), phi(x) = exp(-x^2 / 2) / sqrt(2 pi)."""
    dx = empty(x.shape)
    launch("elementwise", "gelu_backward", blocks_of(x.size, 256), 256, dy, x, dx, x.size)
    return dx


def geglu(x):
    """y = h gelu(gate), h and gate the halves of x's last axis: (..., 2C) -> (..., C)."""
    C = x.shape[-1] // 2
    y = empty((*x.shape[:-1], C))
    launch("elementwise", "geglu", blocks_of(y.size, 256), 256, x, y, y.size, C)
    return y


def geglu_backward(dy, x):
    """dx (..., 2C): dy gelu(gate), then dy h (Phi(gate) + gate phi(gate))."""
    dx = empty(x.shape)
    launch("elementwise", "geglu_backward", blocks_of(dy.size, 256), 256, dy, x, dx, dy.size, dy.shape[-1])
    return dx


def add(a, b):
    """a + b, two arrays of one shape."""
    y = empty(a.shape)
    launch("elementwise", "add", blocks_of(a.size, 256), 256, a, b, y, a.size)
    return y


def sum_to(dy, shape):
    """dy summed over every axis along which `shape` had been broadcast; the result has that shape."""
    A, R, B, Q, C = _five_axes(dy.shape, shape)
    results, terms, y = A * B * C, R * Q, empty(shape)
    across = blocks_of(results, 32)
    chunks = max(1, min(1024 // across, terms // 256))
    chunk = blocks_of(terms, chunks)
    parts = cp.empty((chunks, results), np.float64)
    launch("elementwise", "sum_chunks", (across, chunks), 256, dy, parts, A, R, B, Q, C, chunk)
    launch("elementwise", "add_chunks", blocks_of(results, 256), 256, parts, y, results, chunks)
    return y


def _five_axes(before, shape):
    """The shape `before` as (kept, summed, kept, summed, kept): neighbours of one kind become one, 1 where none is."""
    after = (0,) * (len(before) - len(shape)) + tuple(shape)  # 0: an axis that was not there
    runs = groupby(((n, n != m) for n, m in zip(before, after, strict=True) if n > 1), key=lambda axis: axis[1])
    axes = []
    for summed, run in runs:
        axes += [1] if summed != len(axes) % 2 else []
        axes.append(prod(n for n, _ in run))
    if len(axes) > 5:
        raise ValueError(f"sum_to: {before} to {shape} has too many axes")
    return axes + [1] * (5 - len(axes))


def embedding(table, index):
    """y[n] = table[index[n]]; table (K, D), index (N,) int, y (N, D)."""
    y = empty((len(index), table.shape[1]))
    launch("elementwise", "embedding", blocks_of(y.size, 256), 256, table, _rows(index), y, y.size, table.shape[1])
    return y


def embedding_backward(dy, index, rows):
    """dtable (rows, D): the rows of dy added up where they came from."""
    n, width = dy.shape
    dtable = empty((rows, width))
    launch(
        "elementwise", "embedding_backward", blocks_of(dtable.size, 256), 256, dy, _rows(index), dtable,
        n, dtable.size, width,
    )  # fmt: skip
    return dtable


def _rows(index):
    """Indices as kernels want them."""
    return cp.asarray(np.asarray(index, np.int32))
