"""Convolution as a product with patches: gathered in cache block by block, never stored as a whole.

A block is a few dozen output pixels. Its patches, everything the kernel sees around each pixel, are copied
into a scratch of (rows, KH KW C) numbers that stays in the second-level cache (im2col, Chellapilla et al.
2006, but blocked), and one matrix product with the weights gives the block's outputs:

    forward          y[block]  =  patches(x)[block] @ w            + bias + add
    input gradient   dx[block] = patches(dy)[block] @ w flipped    dy seen with stride - 1 zeros between pixels
    weight gradient  dw       += dy[block]^T @ patches(x)[block]

Gathering costs a few percent of the product and takes care of stride, borders and every kernel size alike,
so the product itself has no special case. Weights are packed into panels of LANES output channels.
The 3x3 convolutions with stride 1 that most of a U-Net consists of go a faster way, in winograd.py.
"""

import numpy as np
from numba import get_num_threads, prange
from numba.np.ufunc.parallel import get_thread_id

from ..reference.conv import output_size
from . import winograd
from .elementwise import sum_to
from .jit import helper, kernel
from .memory import empty
from .simd import LANES, ROWS, add_product, clear, copy, round_up

PATCH_FLOATS = 96 * 1024  # a block's patches: 384 KB of a second-level cache of at least 512
MOST_ROWS = 128
CHUNKS = 8  # parts into which the sum over pixels of a weight gradient is cut, whatever the threads


def conv2d(x, w, bias=None, stride=1, pad=(0, 0, 0, 0), add=None):
    """y (N, P, Q, O), as the head of the reference says."""
    O, KH, KW, C = w.shape
    P, Q = output_size(x.shape, w.shape, stride, pad)
    y = empty((len(x), P, Q, O))
    panels = empty((-(-O // LANES), KH * KW * C, LANES))
    _pack(w.reshape(O, -1), panels)
    _product(x, panels, bias, add, y, (KH, KW, stride, 1, pad[0], pad[2]))
    return y


def conv2d_backward(dy, x, w, stride=1, pad=(0, 0, 0, 0), need_dx=True):
    """The gradients dx (None if not needed), dw, dbias."""
    O, KH, KW, C = w.shape
    dx = None
    if need_dx:
        dx = empty(x.shape)
        panels = empty((-(-C // LANES), KH * KW * O, LANES))
        _pack_flipped(w, panels)
        _product(dy, panels, None, None, dx, (KH, KW, 1, stride, KH - 1 - pad[0], KW - 1 - pad[2]))
    if winograd.fits(w.shape, stride, dy.shape[1:3]):
        return dx, winograd.weight_gradient(dy, x, w.shape, (pad[0], pad[2])), sum_to(dy, (O,))
    dw, dbias = _weight_gradient(dy, x, w.shape, (KH, KW, stride, 1, pad[0], pad[2]))
    return dx, dw, dbias


def _block_rows(pixels, K, share=1):
    """Pixels in a block: as many as their patches fit in cache, fewer if threads would go without."""
    rows = min(PATCH_FLOATS // round_up(K), MOST_ROWS, -(-pixels // share))
    return max(rows // ROWS * ROWS, ROWS)


def _product(x, panels, bias, add, y, window):
    """y = patches(x) @ panels + bias + add; the result does not depend on how pixels are cut into blocks."""
    (N, P, Q, O), (V, K, _) = y.shape, panels.shape
    bias = np.zeros(O, np.float32) if bias is None else bias
    add = np.zeros((1, O), np.float32) if add is None else add.reshape(-1, O)
    KH, KW, stride, spacing, top, left = window
    if spacing == 1 and winograd.fits((O, KH, KW, x.shape[3]), stride, (P, Q)):
        return winograd.product(x, panels, bias, add, y, (top, left))
    pixels, threads = N * P * Q, get_num_threads()
    rows = _block_rows(pixels, K, threads)
    patches = empty((threads, rows * round_up(K)))
    block = empty((threads, rows * V * LANES))
    _product_kernel(x, panels.ravel(), bias, add, y.reshape(pixels, O), (P, Q), window, rows, patches, block)


def _weight_gradient(dy, x, w_shape, window):
    O, KH, KW, C = w_shape
    (N, P, Q, _), K = dy.shape, KH * KW * C
    pixels, threads = N * P * Q, get_num_threads()
    rows = _block_rows(pixels, K)
    chunks = min(CHUNKS, -(-pixels // rows))
    tall, wide = round_up(O, ROWS), round_up(K)
    parts, sums = empty((chunks, tall * wide)), np.zeros((chunks, O), np.float32)
    patches, block = empty((threads, rows * wide)), empty((threads, rows * tall))
    _weight_gradient_kernel(dy.reshape(pixels, O), x, (P, Q), window, rows, parts, sums, patches, block)
    dw = empty((O, K))
    _add_parts(parts, dw, wide)
    return dw.reshape(w_shape), sums.sum(0)


@helper
def _gather(x, flat, window, P, Q, first, rows, patches, width):
    """Fill patches[r, :] with what the kernel sees from output pixel first + r; zeros beyond the border.

    window: KH, KW, stride of the kernel, spacing of the pixels of x (stride - 1 zeros lie between them), top, left.
    A row of the kernel is one run of memory, since neighbouring pixels are neighbours there too.
    """
    _, H, W, C = x.shape
    KH, KW, stride, spacing, top, left = window
    for r in range(rows):
        n, position = divmod(first + r, P * Q)
        p, q = divmod(position, Q)
        for i in range(KH):
            to = r * width + i * KW * C
            u = p * stride + i - top
            v = q * stride - left
            if u < 0 or u % spacing or u // spacing >= H:
                clear(patches, to, KW * C)
            elif spacing == 1:
                before, after = max(-v, 0), max(v + KW - W, 0)  # taps beyond the left and the right border
                inside = KW - before - after
                if before > 0:
                    clear(patches, to, min(before, KW) * C)
                if inside > 0:
                    copy(patches, to + before * C, flat, ((n * H + u) * W + v + before) * C, inside * C)
                if after > 0:
                    clear(patches, to + max(KW - after, 0) * C, min(after, KW) * C)
            else:
                for j in range(KW):
                    s = v + j
                    if s < 0 or s % spacing or s // spacing >= W:
                        clear(patches, to + j * C, C)
                    else:
                        copy(patches, to + j * C, flat, ((n * H + u // spacing) * W + s // spacing) * C, C)


@kernel
def _product_kernel(x, panels, bias, add, y, size, window, rows, patches, block):
    (pixels, O), (P, Q) = y.shape, size
    K = window[0] * window[1] * x.shape[3]
    V = len(panels) // (K * LANES)
    width, every, flat = patches.shape[1] // rows, pixels // len(add), x.ravel()
    for b in prange((pixels + rows - 1) // rows):
        first = b * rows
        count = min(rows, pixels - first)
        seen, out = patches[get_thread_id()], block[get_thread_id()]
        _gather(x, flat, window, P, Q, first, count, seen, width)
        clear(out, 0, rows * V * LANES)
        tall = (count + ROWS - 1) // ROWS * ROWS
        add_product(seen, 0, width, 1, panels, 0, K * LANES, LANES, out, 0, V * LANES, tall, V, K)
        results = out.reshape(rows, V * LANES)
        for r in range(count):
            row = (first + r) // every
            for o in range(O):
                y[first + r, o] = results[r, o] + bias[o] + add[row, o]


@kernel
def _weight_gradient_kernel(dy, x, size, window, rows, parts, sums, patches, block):
    """parts[chunk] = its share of dw, (O rounded up to ROWS, K rounded up to LANES); sums[chunk] of dbias."""
    (pixels, O), (P, Q), chunks = dy.shape, size, len(parts)
    tall, wide = block.shape[1] // rows, patches.shape[1] // rows
    blocks, flat, flat_dy = (pixels + rows - 1) // rows, x.ravel(), dy.ravel()
    for chunk in prange(chunks):
        seen, errors, total = patches[get_thread_id()], block[get_thread_id()], sums[chunk]
        clear(parts[chunk], 0, tall * wide)
        for b in range(blocks * chunk // chunks, blocks * (chunk + 1) // chunks):
            first = b * rows
            count = min(rows, pixels - first)
            _gather(x, flat, window, P, Q, first, count, seen, wide)
            for r in range(count):
                copy(errors, r * tall, flat_dy, (first + r) * O, O)
                for o in range(O):
                    total[o] += dy[first + r, o]
            add_product(errors, 0, 1, tall, seen, 0, LANES, wide, parts[chunk], 0, wide, tall, wide // LANES, count)


@kernel
def _add_parts(parts, dw, wide):
    O, K = dw.shape
    for o in prange(O):
        for k in range(K):
            dw[o, k] = parts[0, o * wide + k]
        for chunk in range(1, len(parts)):
            for k in range(K):
                dw[o, k] += parts[chunk, o * wide + k]


@kernel
def _pack(w, panels):
    """panels[v, k, l] = w[v LANES + l, k], zero beyond the last output channel; w (O, K)."""
    O, K = w.shape
    V = len(panels)
    for v in prange(V):
        for lane in range(LANES):
            o = v * LANES + lane
            for k in range(K):
                panels[v, k, lane] = w[o, k] if o < O else np.float32(0)


@kernel
def _pack_flipped(w, panels):
    """The weights turned round, for the input gradient: row (i, j, o) holds w[o, KH-1-i, KW-1-j, :]."""
    O, KH, KW, C = w.shape
    V = len(panels)
    for task in prange(V * KH * KW):
        v, tap = divmod(np.int64(task), KH * KW)
        i, j = divmod(tap, KW)
        for o in range(O):
            for lane in range(LANES):
                c = v * LANES + lane
                panels[v, tap * O + o, lane] = w[o, KH - 1 - i, KW - 1 - j, c] if c < C else np.float32(0)
