"""Elementwise activations and addition, sums that undo broadcasting, and embedding lookup."""

from itertools import groupby
from math import prod

import numpy as np

from .launch import ceil_div, cp, launch
from .memory import empty


def silu(x):
    """y = x sigmoid(x), any shape."""
    y = empty(x.shape)
    launch("elementwise", "silu", ceil_div(x.size, 256), 256, x, y, x.size)
    return y


def silu_backward(dy, x):
    """dx = dy s (1 + x (1 - s)), s = sigmoid(x)."""
    dx = empty(x.shape)
    launch("elementwise", "silu_backward", ceil_div(x.size, 256), 256, dy, x, dx, x.size)
    return dx


def gelu(x):
    """y = x Phi(x), any shape; Phi is the standard normal distribution function."""
    y = empty(x.shape)
    launch("elementwise", "gelu", ceil_div(x.size, 256), 256, x, y, x.size)
    return y


def gelu_backward(dy, x):
    """dx = dy (Phi(x) + x phi(x)), phi(x) = exp(-x^2 / 2) / sqrt(2 pi)."""
    dx = empty(x.shape)
    launch("elementwise", "gelu_backward", ceil_div(x.size, 256), 256, dy, x, dx, x.size)
    return dx


def geglu(x):
    """y = h gelu(gate), h and gate the halves of x's last axis: (..., 2C) -> (..., C)."""
    C = x.shape[-1] // 2
    y = empty((*x.shape[:-1], C))
    launch("elementwise", "geglu", ceil_div(y.size, 256), 256, x, y, y.size, C)
    return y


def geglu_backward(dy, x, y=None):
    """dx (..., 2C): dy gelu(gate), then dy h (Phi(gate) + gate phi(gate)); in y, which may be dy, the output."""
    dx = empty(x.shape)
    launch("elementwise", "geglu_backward", ceil_div(dy.size, 256), 256, dy, x, dx, y, dy.size, dy.shape[-1])
    return dx


def add(a, b):
    """a + b, two arrays of one shape."""
    y = empty(a.shape)
    launch("elementwise", "add", ceil_div(a.size, 256), 256, a, b, y, a.size)
    return y


def sum_to(dy, shape):
    """dy summed over every axis along which `shape` was broadcast; the result has that shape."""
    A, R, B, Q, C = _five_axes(dy.shape, shape)
    results, terms, y = A * B * C, R * Q, empty(shape)
    result_blocks = ceil_div(results, 32)
    chunks = max(1, min(1024 // result_blocks, terms // 256))
    chunk = ceil_div(terms, chunks)
    parts = cp.empty((chunks, results), np.float64)
    launch("elementwise", "sum_chunks", (result_blocks, chunks), 256, dy, parts, A, R, B, Q, C, chunk)
    launch("elementwise", "add_chunks", ceil_div(results, 256), 256, parts, y, results, chunks)
    return y


def _five_axes(before, shape):
    """The shape `before` as (kept, summed, kept, summed, kept): adjacent axes of a kind merged, missing ones 1."""
    after = (0,) * (len(before) - len(shape)) + tuple(shape)  # 0: an axis that `shape` lacks
    runs = groupby(((n, n != m) for n, m in zip(before, after, strict=True) if n > 1), key=lambda axis: axis[1])
    axes = []
    for summed, run in runs:
        axes += [1] if summed != len(axes) % 2 else []
        axes.append(prod(n for n, _ in run))
    if len(axes) > 5:
        raise ValueError(
            f"sum_to: {before} to {shape} alternates too often between kept and summed axes: at most five runs"
        )
    return axes + [1] * (5 - len(axes))


def embedding(table, index):
    """y[n] = table[index[n]]; table (K, D), index (N,) int, y (N, D)."""
    y = empty((len(index), table.shape[1]))
    launch(
        "elementwise", "embedding", ceil_div(y.size, 256), 256, table, _int32_index(index), y, y.size, table.shape[1]
    )
    return y


def embedding_backward(dy, index, rows):
    """dtable (rows, D): dtable[index[n]] += dy[n]."""
    n, width = dy.shape
    dtable = empty((rows, width))
    launch(
        "elementwise", "embedding_backward", ceil_div(dtable.size, 256), 256, dy, _int32_index(index), dtable,
        n, dtable.size, width,
    )  # fmt: skip
    return dtable


def _int32_index(index):
    """The index as int32 on the GPU."""
    return cp.asarray(np.asarray(index, np.int32))
