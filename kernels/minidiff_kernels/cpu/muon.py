"""Muon: momentum, orthogonalised by Newton-Schulz iterations, as the update of weight matrices in flat buffers.

The matrices are small and many, so each is one thread's, from its gradient to its average, in scratch that stays in L2:

    y        (rows, width)    the momentum, lying so that rows >= columns
    gram     (width, width)   A = y^T y
    factor   (width, width)   B = a I + b A + c A^2
    y_next   (rows, width)    y B

Rows are padded to whole tiles and columns to whole vectors, by zeros, which stay zero.
"""

import numpy as np
from numba import prange

from ..reference.muon import COEFFICIENTS, ITERATIONS, RMS, TINY
from .jit import helper, kernel
from .memory import scratch
from .product import ROWS, product, product_transposed
from .simd import LANES, clear, round_up

BLOCK = 16  # rows at a time, so that both layouts are read in whole cache lines


def muon(p, g, m, ema, matrices, norm, clip, lr, momentum, weight_decay, ema_decay):
    """One step of Muon, in place; equations in reference/muon.py."""
    if not np.isfinite(norm) or not len(matrices):
        return
    f = np.float32
    rates = (
        f(min(1.0, clip / (norm + 1e-6))), f(1 - momentum),
        f(1 - lr * weight_decay), f(lr * RMS), f(1 - ema_decay),
    )  # fmt: skip
    layouts = np.array(sorted((_layout(*matrix) for matrix in matrices.tolist()), key=_products, reverse=True))
    y, width = (int(n) for n in ((layouts[:, 4] * layouts[:, 6]).max(), layouts[:, 6].max()))
    offsets, memory = scratch([y, y, width * width, width * width])
    _muon(p, g, m, p if ema is None else ema, layouts, rates, offsets, memory)  # of p with p: no change


def _layout(first, O, K):
    """first, down, across, rows, padded, columns, width: y[row, column] is element first + row down + column across.

    y has `padded` rows of `width` elements: whole tiles and vectors.
    """
    down, across, rows, columns = (K, 1, O, K) if O > K else (1, K, K, O)
    return first, down, across, rows, round_up(rows, ROWS), columns, round_up(columns)


def _products(layout):
    """The operations of the products with y, about."""
    *_, padded, _, width = layout
    return padded * width**2


@kernel
def _muon(p, g, m, ema, layouts, rates, offsets, memory):
    """A thread takes every threads-th matrix; the largest come first, so that all have about as much to do."""
    scale, new_m, keep, rate, new_ema = rates
    threads = len(memory)
    for thread in prange(threads):
        a = memory[thread]
        for i in range(thread, len(layouts), threads):
            layout, rows, columns = layouts[i], layouts[i, 3], layouts[i, 5]
            _momentum(g, m, layout, scale, new_m, a, offsets[0])
            y = _orthogonalize(a, offsets, rows, layouts[i, 4], layouts[i, 6])
            _update(p, ema, layout, (keep, rate * np.sqrt(np.float32(max(rows, columns))), new_ema), a, y)


@helper
def _momentum(g, m, layout, scale, new_m, a, y):
    """m, and Nesterov's momentum in y."""
    first, down, across, rows, padded, columns, width = layout
    clear(a, y, padded * width)
    for block in range(0, rows, BLOCK):
        for column in range(columns):
            for row in range(block, min(block + BLOCK, rows)):
                i = first + row * down + column * across
                gc = g[i] * scale
                m[i] += new_m * (gc - m[i])
                a[y + row * width + column] = m[i] + new_m * (gc - m[i])


@helper
def _orthogonalize(a, offsets, rows, padded, width):
    """Orthogonalise y within the scratch a; returns where it is then."""
    y, y_next, gram, factor = offsets
    V, A, B = width // LANES, (a, gram, width, LANES), (a, factor, width, LANES)
    _normalize(a, y, padded * width)
    for _ in range(ITERATIONS):
        Y, Y_next = (a, y, width, LANES), (a, y_next, width, LANES)
        product_transposed(Y, Y, A, width, V, rows, True)
        product(A, A, B, width, V, width, True)
        _polynomial(a, gram, factor, width)
        product(Y, B, Y_next, padded, V, width, True)
        y, y_next = y_next, y
    return y


@helper
def _normalize(a, y, size):
    """y divided by its norm, which is summed in float64."""
    totals = np.zeros(LANES)  # independent sums, so that additions do not wait for each other
    for i in range(0, size, LANES):
        for lane in range(LANES):
            totals[lane] += np.float64(a[y + i + lane]) * np.float64(a[y + i + lane])
    norm = np.float32(np.maximum(np.sqrt(totals.sum()), TINY))
    for i in range(y, y + size):
        a[i] /= norm


@helper
def _polynomial(a, gram, factor, width):
    """B = a I + b A + c A^2 in the place of A^2."""
    identity, linear, quadratic = np.float32(COEFFICIENTS[0]), np.float32(COEFFICIENTS[1]), np.float32(COEFFICIENTS[2])
    for i in range(width * width):
        a[factor + i] = linear * a[gram + i] + quadratic * a[factor + i]
    for i in range(width):
        a[factor + i * (width + 1)] += identity


@helper
def _update(p, ema, layout, rates, a, y):
    """Weight decay, update and EMA."""
    first, down, across, rows, _, columns, width = layout
    keep, rate, new_ema = rates
    for block in range(0, rows, BLOCK):
        for column in range(columns):
            for row in range(block, min(block + BLOCK, rows)):
                i = first + row * down + column * across
                p[i] = p[i] * keep - rate * a[y + row * width + column]
                ema[i] += new_ema * (p[i] - ema[i])
