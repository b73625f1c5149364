"""Layer normalisation, which is group normalisation of a single position with a single group: a row is normalised.

A row is a few vectors, its statistics are two numbers. So that adding up across a vector costs little, a row's own
sums stay in registers, and rows are taken one after the other without a thought for the cache: each is read once.
The gradients of weight and bias are sums over all rows, in float32 over CHUNK of them, and in float64 over chunks.
"""

from math import prod

import numpy as np
from numba import prange

from .jit import helper, kernel
from .memory import empty
from .simd import LANES, load, store, total, zeros

BLOCK = 64  # rows that a thread takes at a time
CHUNK, CHUNKS = 16, 64  # rows whose sum is in float32, and the most parts of all rows, whatever the threads


def fits(x_shape, groups, silu) -> bool:
    """Whether the group normalisation of x is this one: one position, one group, whole vectors."""
    *positions, C = x_shape[1:]
    return (prod(positions), groups, silu) == (1, 1, False) and C % LANES == 0


def layer_norm(x, weight, bias, eps):
    """y, mean, rstd, as group_norm gives them."""
    N, C = len(x), x.shape[-1]
    y, mean, rstd = empty(x.shape), empty((N, 1)), empty((N, 1))
    _forward(x.reshape(N, C), weight, bias, np.float64(eps), y.reshape(N, C), mean.ravel(), rstd.ravel())
    return y, mean, rstd


def layer_norm_backward(dy, x, weight, mean, rstd):
    """The gradients dx, dweight, dbias."""
    N, C = len(x), x.shape[-1]
    dx, sums = empty(x.shape), np.empty((min(CHUNKS, -(-N // CHUNK)), 2, C))
    _backward(dy.reshape(N, C), x.reshape(N, C), weight, mean.ravel(), rstd.ravel(), dx.reshape(N, C), sums)
    dbias, dweight = sums.sum(0).astype(np.float32)
    return dx, dweight, dbias


@helper
def _statistics(x, at, C, eps):
    """The mean and 1 / standard deviation of the row at x[at], in two passes: E[(x - mean)^2] does not cancel."""
    part = zeros()
    for c in range(at, at + C, LANES):
        part = part + load(x, c)
    mean = total(part) / np.float32(C)
    part = zeros()
    for c in range(at, at + C, LANES):
        off = load(x, c) - mean
        part = part + off * off
    return mean, np.float32(1 / np.sqrt(np.float64(total(part)) / C + eps))


@kernel
def _forward(x, weight, bias, eps, y, mean, rstd):
    """y (N, C); mean and rstd (N,)."""
    (N, C), x, y = x.shape, x.ravel(), y.ravel()
    for block in prange((N + BLOCK - 1) // BLOCK):
        first = np.int64(block) * BLOCK
        for n in range(first, min(first + BLOCK, N)):
            centre, scale = _statistics(x, n * C, C, eps)
            mean[n], rstd[n] = centre, scale
            for c in range(0, C, LANES):
                xhat = (load(x, n * C + c) - centre) * scale
                store(y, n * C + c, xhat * load(weight, c) + load(bias, c))


@helper
def _backward_row(dy, x, weight, mean, rstd, at, C, dx, part):
    """dx = rstd (g - E[g] - xhat E[g xhat]), g = dy weight; part (2, C) += dy and dy xhat."""
    sum_g, sum_gx = zeros(), zeros()
    for c in range(0, C, LANES):
        d, xhat = load(dy, at + c), (load(x, at + c) - mean) * rstd
        g = d * load(weight, c)
        sum_g, sum_gx = sum_g + g, sum_gx + g * xhat
        store(part, c, load(part, c) + d)
        store(part, C + c, load(part, C + c) + d * xhat)
    mean_g, mean_gx = total(sum_g) / np.float32(C), total(sum_gx) / np.float32(C)
    for c in range(0, C, LANES):
        xhat = (load(x, at + c) - mean) * rstd
        store(dx, at + c, (load(dy, at + c) * load(weight, c) - mean_g - xhat * mean_gx) * rstd)


@kernel
def _backward(dy, x, weight, mean, rstd, dx, sums):
    """dx (N, C), and sums (chunks, 2, C) of dy and of dy xhat over the rows of each part."""
    N, C = x.shape
    dy, x, dx = dy.ravel(), x.ravel(), dx.ravel()
    for share in prange(len(sums)):
        start, end = N * np.int64(share) // len(sums), N * (np.int64(share) + 1) // len(sums)
        part, whole = np.empty(2 * C, np.float32), sums[share].ravel()
        whole[:] = 0
        for chunk in range(start, end, CHUNK):
            part[:] = 0
            for n in range(chunk, min(chunk + CHUNK, end)):
                _backward_row(dy, x, weight, mean[n], rstd[n], n * C, C, dx, part)
            for c in range(2 * C):
                whole[c] += part[c]
