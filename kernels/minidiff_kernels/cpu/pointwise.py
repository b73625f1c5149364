"""The 1x1 convolution, which is also the linear layer: pixels are the rows of a matrix, as they lie in memory.

    forward          y  = x w^T       + bias + add
    input gradient   dx = dy w        the same with the other weights
    weight gradient  dw = dy^T x

Nothing is gathered and no result is copied. What limits a product of so few channels is memory: while one tile is
computed, the second-level cache is asked for the rows of the next (product.py).
"""

import numpy as np
from numba import get_num_threads, prange

from .jit import helper, kernel
from .memory import empty
from .product import K_CHUNK, ROWS, product, product_transposed, strip
from .simd import LANES, load, store

MOST_ROWS = 32  # pixels in a block: results are still in cache when bias and add come
CHUNKS = 8  # parts into which the sum over pixels of a weight gradient is cut, whatever the threads


def fits(window, x_shape, size, O) -> bool:
    """Whether a convolution with that window and output size (P, Q) goes this way: whole tiles only."""
    KH, KW, stride, top, left = window
    N, H, W, C = x_shape
    same = (KH, KW, stride, top, left) == (1, 1, 1, 0, 0) and (H, W) == tuple(size)
    return same and N * H * W % ROWS == 0 and O % LANES == 0 and C % LANES == 0


def convolve(x, panels, bias, add, y):
    """y = x w^T + bias + add, of weights in panels (O / LANES, C, LANES); see conv.py."""
    O = y.shape[-1]
    pixels = y.size // O
    rows = max(min(MOST_ROWS, -(-pixels // get_num_threads())) // ROWS * ROWS, ROWS)
    _multiply(x.reshape(pixels, -1), panels, bias, add, y.reshape(pixels, O), rows)


@helper
def _add(y, first, count, O, channels, bias, add, every):
    """y += bias + add, for pixels first, first + 1, ... and some channels; `every` pixels share a row of add."""
    start, end = channels
    for r in range(first, first + count):
        row = (r if every == 1 else r // every) * O
        for o in range(start, end, LANES):
            store(y, r * O + o, load(y, r * O + o) + (load(bias, o) + load(add, row + o)))


@kernel
def _multiply(x, panels, bias, add, y, rows):
    (pixels, C), O, V = x.shape, y.shape[1], panels.shape[0]
    every, x, weights, add, y = pixels // len(add), x.ravel(), panels.ravel(), add.ravel(), y.ravel()
    for block in prange((pixels + rows - 1) // rows):
        first = np.int64(block) * rows
        count = min(rows, pixels - first)
        v = 0
        while v < V:
            width = strip(V - v)
            A, B = (x, first * C, C, LANES), (weights, v * C * LANES, LANES, C * LANES)
            product(A, B, (y, first * O + v * LANES, O, LANES), count, width, C, True)
            _add(y, first, count, O, (v * LANES, (v + width) * LANES), bias, add, every)
            v += width


def weight_gradient(dy, x):
    """dw (O, C) and dbias (O,)."""
    O, C = dy.shape[-1], x.shape[-1]
    pixels = dy.size // O
    chunks = min(CHUNKS, -(-pixels // K_CHUNK))
    parts, sums = empty((chunks, O, C)), np.empty((chunks, O), np.float32)
    _multiply_chunks(dy.reshape(pixels, O), x.reshape(pixels, C), parts, sums)
    return parts.sum(0), sums.sum(0)


@helper
def _sum_rows(dy, first, count, O, total, fresh):
    """total = or += the sum of rows first, first + 1, ... of dy."""
    for o in range(0, O, LANES):
        part = load(dy, first * O + o)
        for r in range(first + 1, first + count):
            part = part + load(dy, r * O + o)
        store(total, o, part if fresh else part + load(total, o))


@kernel
def _multiply_chunks(dy, x, parts, sums):
    """parts[chunk] = its share of dw, sums[chunk] of dbias."""
    (pixels, O), C, chunks = dy.shape, x.shape[1], len(parts)
    blocks, dy, x = (pixels + K_CHUNK - 1) // K_CHUNK, dy.ravel(), x.ravel()
    for chunk in prange(chunks):
        part, total, start = parts[chunk].ravel(), sums[chunk], blocks * chunk // chunks
        for b in range(start, blocks * (chunk + 1) // chunks):
            first = b * K_CHUNK
            count = min(K_CHUNK, pixels - first)
            A, B = (dy, first * O, O, LANES), (x, first * C, C, LANES)
            product_transposed(A, B, (part, 0, C, LANES), O, C // LANES, count, b == start)
            _sum_rows(dy, first, count, O, total, b == start)
