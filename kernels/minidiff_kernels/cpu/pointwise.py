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
from .simd import LANES, expect, load, prepare, store, turn

MOST_ROWS = 32  # pixels in a block: results are still in cache when bias and add come
CHUNKS = 8  # parts into which the sum over pixels of a weight gradient is cut, whatever the threads


def fits(window, x_shape, size, O) -> bool:
    """Whether a convolution with that window and output size (P, Q) goes this way: whole tiles only."""
    KH, KW, stride, top, left = window
    N, H, W, C = x_shape
    same = (KH, KW, stride, top, left) == (1, 1, 1, 0, 0) and (H, W) == tuple(size)
    return same and N * H * W % ROWS == 0 and O % LANES == 0 and C % LANES == 0


def convolve(x, w, bias, add, y):
    """y = x w^T + bias + add; w (O, C), add as y or a row for each picture, bias and add may be None."""
    O = y.shape[-1]
    bias = np.zeros(O, np.float32) if bias is None else bias
    add = np.zeros((1, O), np.float32) if add is None else add.reshape(-1, O)
    _run(x, w, True, bias, add, y)
    return y


def input_gradient(dy, w, dx):
    """dx = dy w; w (O, C)."""
    C = dx.shape[-1]
    _run(dy, w, False, np.zeros(C, np.float32), np.zeros((1, C), np.float32), dx)
    return dx


def _run(x, w, turned, bias, add, y):
    """y = x w + bias + add, or x w^T if w is to be turned; x (..., K), y (..., O)."""
    O, K = y.shape[-1], x.shape[-1]
    pixels = y.size // O
    rows = max(min(MOST_ROWS, -(-pixels // get_num_threads())) // ROWS * ROWS, ROWS)
    panels = empty((O // LANES, K, LANES))
    _multiply(x.reshape(pixels, K), w, turned, bias, add, y.reshape(pixels, O), panels, rows)


@helper
def _pack(w, turned, v, panels):
    """panels[v, k] = w[k, v LANES + lane], or w[v LANES + lane, k] if it is to be turned, for every lane."""
    K, flat, out, to = panels.shape[1], w.ravel(), panels.ravel(), v * panels.shape[1] * LANES
    if turned:
        turn(flat, to, K, LANES, K, out, to, LANES * K)
    else:
        for k in range(K):
            store(out, to + k * LANES, load(flat, k * w.shape[1] + v * LANES))


@helper
def _add(y, first, count, O, channels, bias, add, every):
    """y += bias + add, for pixels first, first + 1, ... and some channels; `every` pixels share a row of add."""
    start, end = channels
    for r in range(first, first + count):
        row = (r if every == 1 else r // every) * O
        for o in range(start, end, LANES):
            store(y, r * O + o, load(y, r * O + o) + (load(bias, o) + load(add, row + o)))


@helper
def _prepare_next(y, add, every, first, rows, pixels, O, v, V):
    """Ask the cache for what comes after this: the strip of y, and of add, at panel v, or the next block's first."""
    if v == V:
        first, v = first + rows, 0
    for r in range(first, min(first + rows, pixels)):
        for panel in range(v, min(v + 3, V)):
            prepare(y, r * O + panel * LANES)
            if every == 1:
                expect(add, r * O + panel * LANES)


@kernel
def _multiply(x, w, turned, bias, add, y, panels, rows):
    (pixels, C), O, V = x.shape, y.shape[1], len(panels)
    every, x, weights, add, y = pixels // len(add), x.ravel(), panels.ravel(), add.ravel(), y.ravel()
    for v in prange(V):
        _pack(w, turned, np.int64(v), panels)
    for block in prange((pixels + rows - 1) // rows):
        first = np.int64(block) * rows
        count = min(rows, pixels - first)
        v = 0
        while v < V:
            width = strip(V - v)
            _prepare_next(y, add, every, first, rows, pixels, O, v + width, V)
            A, B = (x, first * C, C, LANES), (weights, v * C * LANES, LANES, C * LANES)
            product(A, B, (y, first * O + v * LANES, O, LANES), count, width, C, True)
            _add(y, first, count, O, (v * LANES, (v + width) * LANES), bias, add, every)
            v += width


def weight_gradient(dy, x):
    """dw (O, C) and dbias (O,)."""
    O, C = dy.shape[-1], x.shape[-1]
    pixels = dy.size // O
    chunks = min(CHUNKS, -(-pixels // K_CHUNK))
    parts, sums, dw = empty((chunks, O, C)), np.empty((chunks, O), np.float32), empty((O, C))
    _multiply_chunks(dy.reshape(pixels, O), x.reshape(pixels, C), parts, sums, dw)
    return dw, sums.sum(0)


@helper
def _sum_rows(dy, first, count, O, total, fresh):
    """total = or += the sum of rows first, first + 1, ... of dy."""
    for o in range(0, O, LANES):
        part = load(dy, first * O + o)
        for r in range(first + 1, first + count):
            part = part + load(dy, r * O + o)
        store(total, o, part if fresh else part + load(total, o))


@kernel
def _multiply_chunks(dy, x, parts, sums, dw):
    """parts[chunk] = its share of dw, sums[chunk] of dbias; dw is the sum of its parts."""
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
    flat, every = dw.ravel(), parts.ravel()
    for o in prange(O):
        start = np.int64(o) * C
        for c in range(start, start + C, LANES):
            whole = load(every, c)
            for chunk in range(1, chunks):
                whole = whole + load(every, chunk * O * C + c)
            store(flat, c, whole)
