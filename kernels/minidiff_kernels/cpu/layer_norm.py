"""Layer normalisation: group normalisation with one position and one group, so that each row of C is normalised.

A row is a few vectors, and its sums stay in registers until one horizontal sum. The gradients of weight and bias are
sums over all rows: in float32 over CHUNK rows, in float64 over these chunks.

Accelerates reference/norm.py for one position and one group without SiLU.
"""

from math import prod

import numpy as np
from numba import prange

from .jit import helper, kernel
from .memory import empty
from .simd import LANES, load, store, sum_lanes, zeros

BLOCK = 64  # rows in one task of a thread
CHUNK = 16  # rows summed in float32
MAX_TASKS = 64  # of the backward pass; independent of the number of threads


def supports(x_shape, groups, silu) -> bool:
    """Whether this group normalisation has one position, one group, no SiLU and whole vectors of channels."""
    *positions, C = x_shape[1:]
    return (prod(positions), groups, silu) == (1, 1, False) and C % LANES == 0


def layer_norm(x, weight, bias, eps):
    """y, mean, rstd, as group_norm."""
    N, C = len(x), x.shape[-1]
    y, mean, rstd = empty(x.shape), empty((N, 1)), empty((N, 1))
    _forward(x.reshape(N, C), weight, bias, np.float64(eps), y.reshape(N, C), mean.ravel(), rstd.ravel())
    return y, mean, rstd


def layer_norm_backward(dy, x, weight, mean, rstd, add=None):
    """The gradients dx + add, dweight, dbias."""
    N, C = len(x), x.shape[-1]
    dx, sums = empty(x.shape), np.empty((min(MAX_TASKS, -(-N // CHUNK)), 2, C))
    results = dx.reshape(N, C), (dx if add is None else add).reshape(N, C), add is not None
    _backward(dy.reshape(N, C), x.reshape(N, C), weight, (mean.ravel(), rstd.ravel()), results, sums)
    dbias, dweight = sums.sum(0).astype(np.float32)
    return dx, dweight, dbias


@helper
def _statistics(x, at, C, eps):
    """mean and rstd of the row at x[at], in two passes: E[(x - mean)^2] has no cancellation, E[x^2] - mean^2 has."""
    part = zeros()
    for c in range(at, at + C, LANES):
        part = part + load(x, c)
    mean = sum_lanes(part) / np.float32(C)
    part = zeros()
    for c in range(at, at + C, LANES):
        off = load(x, c) - mean
        part = part + off * off
    return mean, np.float32(1 / np.sqrt(np.float64(sum_lanes(part)) / C + eps))


@kernel
def _forward(x, weight, bias, eps, y, mean, rstd):
    """y (N, C); mean and rstd (N,)."""
    (N, C), x, y = x.shape, x.ravel(), y.ravel()
    for block in prange((N + BLOCK - 1) // BLOCK):
        first = np.int64(block) * BLOCK
        for n in range(first, min(first + BLOCK, N)):
            row_mean, row_rstd = _statistics(x, n * C, C, eps)
            mean[n], rstd[n] = row_mean, row_rstd
            for c in range(0, C, LANES):
                xhat = (load(x, n * C + c) - row_mean) * row_rstd
                store(y, n * C + c, xhat * load(weight, c) + load(bias, c))


@helper
def _backward_row(dy, x, weight, mean, rstd, at, C, results, part):
    """dx = rstd (g - E[g] - xhat E[g xhat]), g = dy weight, plus add if `added`; part (2, C) += dy and dy xhat."""
    dx, add, added = results
    sum_g, sum_gx = zeros(), zeros()
    for c in range(0, C, LANES):
        d, xhat = load(dy, at + c), (load(x, at + c) - mean) * rstd
        g = d * load(weight, c)
        sum_g, sum_gx = sum_g + g, sum_gx + g * xhat
        store(part, c, load(part, c) + d)
        store(part, C + c, load(part, C + c) + d * xhat)
    mean_g, mean_gx = sum_lanes(sum_g) / np.float32(C), sum_lanes(sum_gx) / np.float32(C)
    for c in range(0, C, LANES):
        xhat = (load(x, at + c) - mean) * rstd
        gradient = (load(dy, at + c) * load(weight, c) - mean_g - xhat * mean_gx) * rstd
        store(dx, at + c, gradient + load(add, at + c) if added else gradient)


@kernel
def _backward(dy, x, weight, statistics, results, sums):
    """dx + add (N, C), and sums (tasks, 2, C) of dy and of dy xhat over the rows of each task."""
    (N, C), (mean, rstd), (dx, add, added) = x.shape, statistics, results
    dy, x, results = dy.ravel(), x.ravel(), (dx.ravel(), add.ravel(), added)
    for task in prange(len(sums)):
        start, end = N * np.int64(task) // len(sums), N * (np.int64(task) + 1) // len(sums)
        part, totals = np.empty(2 * C, np.float32), sums[task].ravel()
        totals[:] = 0
        for chunk in range(start, end, CHUNK):
            part[:] = 0
            for n in range(chunk, min(chunk + CHUNK, end)):
                _backward_row(dy, x, weight, mean[n], rstd[n], n * C, C, results, part)
            for c in range(2 * C):
                totals[c] += part[c]
