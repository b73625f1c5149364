"""The 1x1 convolution, which is also the linear layer: x as it lies in memory is the matrix (pixels, C).

    forward          y  = x w^T       + bias + add
    input gradient   dx = dy w
    weight gradient  dw = dy^T x

No patches are gathered and results are stored in place. With few channels the product is bound by memory: each tile
prefetches the operands of the next ones into L2 (product.py).

Accelerates reference/conv.py for kernels of 1 x 1 with stride 1, without padding.
"""

import numpy as np
from numba import get_num_threads, prange

from .jit import helper, kernel
from .memory import empty
from .product import K_CHUNK, ROWS, product, product_transposed, strip_width
from .simd import LANES, load, prefetch_read, prefetch_write, store, transpose_to_panels

MAX_ROWS = 32  # pixels in a block: results are still in L1 when bias and add are added
CHUNKS = 8  # of a weight gradient's sum over pixels; independent of the number of threads


def supports(window, x_shape, size, O) -> bool:
    """Whether it is a 1x1 convolution with stride 1, no padding and whole tiles; window as in conv.py, size (P, Q)."""
    KH, KW, stride, top, left = window
    N, H, W, C = x_shape
    same = (KH, KW, stride, top, left) == (1, 1, 1, 0, 0) and (H, W) == tuple(size)
    return same and N * H * W % ROWS == 0 and O % LANES == 0 and C % LANES == 0


def convolve(x, w, bias, add, y):
    """y = x w^T + bias + add; w (O, C), add of y's shape or (N, 1, 1, O); bias and add may be None."""
    O = y.shape[-1]
    bias = np.zeros(O, np.float32) if bias is None else bias
    add = np.zeros((1, O), np.float32) if add is None else add.reshape(-1, O)
    _matmul(x, w, True, bias, add, y)
    return y


def input_gradient(dy, w, dx):
    """dx = dy w; w (O, C)."""
    C = dx.shape[-1]
    _matmul(dy, w, False, np.zeros(C, np.float32), np.zeros((1, C), np.float32), dx)
    return dx


def _matmul(x, w, transposed, bias, add, y):
    """y = x w + bias + add, or x w^T + bias + add if transposed; x (..., K), y (..., O)."""
    O, K = y.shape[-1], x.shape[-1]
    pixels = y.size // O
    rows = max(min(MAX_ROWS, -(-pixels // get_num_threads())) // ROWS * ROWS, ROWS)
    panels = empty((O // LANES, K, LANES))
    _multiply(x.reshape(pixels, K), w, transposed, bias, add, y.reshape(pixels, O), panels, rows)


@helper
def _pack(w, transposed, v, panels):
    """panels[v, k, lane] = w[k, v LANES + lane], or w[v LANES + lane, k] if transposed."""
    K, flat, out = panels.shape[1], w.ravel(), panels.ravel()
    to = v * K * LANES
    if transposed:
        transpose_to_panels(flat, to, K, LANES, K, out, to, LANES * K)
    else:
        for k in range(K):
            store(out, to + k * LANES, load(flat, k * w.shape[1] + v * LANES))


@helper
def _add(y, first, count, O, channels, bias, add, pixels_per_add):
    """y += bias + add for `count` pixels from first on and channels (start, end); pixels_per_add share a row of add."""
    start, end = channels
    for r in range(first, first + count):
        row = (r if pixels_per_add == 1 else r // pixels_per_add) * O
        for o in range(start, end, LANES):
            store(y, r * O + o, load(y, r * O + o) + (load(bias, o) + load(add, row + o)))


@helper
def _prefetch_next(y, add, pixels_per_add, first, rows, pixels, O, v, V):
    """Prefetch the next strip_width of y and add: that at panel v, or the first of the next block."""
    if v == V:
        first, v = first + rows, 0
    for r in range(first, min(first + rows, pixels)):
        for panel in range(v, min(v + 3, V)):
            prefetch_write(y, r * O + panel * LANES)
            if pixels_per_add == 1:
                prefetch_read(add, r * O + panel * LANES)


@kernel
def _multiply(x, w, transposed, bias, add, y, panels, rows):
    (pixels, C), O, V = x.shape, y.shape[1], len(panels)
    pixels_per_add, x, weights, add, y = pixels // len(add), x.ravel(), panels.ravel(), add.ravel(), y.ravel()
    for v in prange(V):
        _pack(w, transposed, np.int64(v), panels)
    for block in prange((pixels + rows - 1) // rows):
        first = np.int64(block) * rows
        count = min(rows, pixels - first)
        v = 0
        while v < V:
            width = strip_width(V - v)
            _prefetch_next(y, add, pixels_per_add, first, rows, pixels, O, v + width, V)
            A, B = (x, first * C, C, LANES), (weights, v * C * LANES, LANES, C * LANES)
            product(A, B, (y, first * O + v * LANES, O, LANES), count, width, C, True)
            _add(y, first, count, O, (v * LANES, (v + width) * LANES), bias, add, pixels_per_add)
            v += width


def weight_gradient(dy, x):
    """dw = dy^T x (O, C) and dbias (O,)."""
    O, C = dy.shape[-1], x.shape[-1]
    pixels = dy.size // O
    chunks = min(CHUNKS, -(-pixels // K_CHUNK))
    dw_chunks, dbias_chunks, dw = empty((chunks, O, C)), np.empty((chunks, O), np.float32), empty((O, C))
    _multiply_chunks(dy.reshape(pixels, O), x.reshape(pixels, C), dw_chunks, dbias_chunks, dw)
    return dw, dbias_chunks.sum(0)


@helper
def _sum_rows(dy, first, count, O, total, overwrite):
    """total = (if overwrite) or += the sum of `count` rows of dy from first on."""
    for o in range(0, O, LANES):
        part = load(dy, first * O + o)
        for r in range(first + 1, first + count):
            part = part + load(dy, r * O + o)
        store(total, o, part if overwrite else part + load(total, o))


@kernel
def _multiply_chunks(dy, x, dw_chunks, dbias_chunks, dw):
    """The sums of each chunk of pixels, dw_chunks and dbias_chunks; dw is the sum of dw_chunks."""
    (pixels, O), C, chunks = dy.shape, x.shape[1], len(dw_chunks)
    blocks, dy, x = (pixels + K_CHUNK - 1) // K_CHUNK, dy.ravel(), x.ravel()
    for chunk in prange(chunks):
        dw_chunk, dbias_chunk, start = dw_chunks[chunk].ravel(), dbias_chunks[chunk], blocks * chunk // chunks
        for b in range(start, blocks * (chunk + 1) // chunks):
            first = b * K_CHUNK
            count = min(K_CHUNK, pixels - first)
            A, B = (dy, first * O, O, LANES), (x, first * C, C, LANES)
            product_transposed(A, B, (dw_chunk, 0, C, LANES), O, C // LANES, count, b == start)
            _sum_rows(dy, first, count, O, dbias_chunk, b == start)
    flat, flat_chunks = dw.ravel(), dw_chunks.ravel()
    for o in prange(O):
        start = np.int64(o) * C
        for c in range(start, start + C, LANES):
            total = load(flat_chunks, c)
            for chunk in range(1, chunks):
                total = total + load(flat_chunks, chunk * O * C + c)
            store(flat, c, total)
