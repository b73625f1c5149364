"""Convolution as a product with patches: gathered in cache block by block, never stored as a whole.

A block is a few dozen output pixels. Its patches, everything the kernel sees around each pixel, are copied
into a scratch of (rows, KH KW C) numbers that stays in the second-level cache (im2col, Chellapilla et al.
2006, but blocked), and one matrix product with the weights gives the block's outputs:

    forward          y[block]  =  patches(x)[block] @ w            + bias + add
    input gradient   dx[block] = patches(dy)[block] @ w flipped    for every residue of the pixels modulo the stride
    weight gradient  dw       += dy[block]^T @ patches(x)[block]

Gathering costs a few percent of the product and takes care of stride, borders and every kernel size alike,
so the product itself has no special case. The 3x3 convolutions with stride 1 that most of a U-Net consists of
go a faster way, in winograd.py; those of 1x1, which have nothing to gather, in pointwise.py.
"""

import numpy as np
from numba import get_num_threads, prange
from numba.np.ufunc.parallel import get_thread_id

from ..reference.conv import output_size
from . import pointwise, winograd
from .jit import helper, kernel
from .memory import empty
from .product import ROWS, product, product_transposed
from .simd import LANES, clear, copy, load, round_up, store, turn

PATCH_FLOATS = 96 * 1024  # a block's patches: 384 KB of a second-level cache of at least 512
MOST_ROWS = 128
CHUNKS = 8  # parts into which the sum over pixels of a weight gradient is cut, whatever the threads


def conv2d(x, w, bias=None, stride=1, pad=(0, 0, 0, 0), add=None):
    """y (N, P, Q, O), as the head of the reference says."""
    O, KH, KW, C = w.shape
    P, Q = output_size(x.shape, w.shape, stride, pad)
    y, window = empty((len(x), P, Q, O)), (KH, KW, stride, pad[0], pad[2])
    if pointwise.fits(window, x.shape, (P, Q), O):
        return pointwise.convolve(x, w.reshape(O, C), bias, add, y)
    weights = empty((-(-O // LANES), KH * KW * C, LANES))
    _pack(w.reshape(O, -1), weights)
    _convolve(x, weights, bias, add, y, window)
    return y


def conv2d_backward(dy, x, w, stride=1, pad=(0, 0, 0, 0), need_dx=True):
    """The gradients dx (None if not needed), dw, dbias."""
    dx = input_gradient(dy, x.shape, w, stride, pad) if need_dx else None
    dw, dbias = weight_gradient(dy, x, w.shape, stride, pad)
    return dx, dw, dbias


def input_gradient(dy, x_shape, w, stride=1, pad=(0, 0, 0, 0)):
    """dx: the convolution of dy with the kernel turned round.

    With a stride, pixel s u + a of x meets only the taps (a + pad) mod s, s apart: each residue a, b of row and
    column is a convolution of its own, with stride 1 and a part of the kernel.
    """
    dx = empty(x_shape)
    if stride == 1:
        O, KH, KW, C = w.shape
        window = (KH, KW, 1, KH - 1 - pad[0], KW - 1 - pad[2])
        if pointwise.fits(window, dy.shape, x_shape[1:3], C):
            return pointwise.input_gradient(dy, w.reshape(O, C), dx)
        weights = empty((-(-C // LANES), KH * KW * O, LANES))
        _pack_flipped(w, weights)
        _convolve(dy, weights, None, None, dx, window)
        return dx
    for a in range(min(stride, x_shape[1])):
        for b in range(min(stride, x_shape[2])):
            part, taps = (
                dx[:, a::stride, b::stride],
                w[:, (a + pad[0]) % stride :: stride, (b + pad[2]) % stride :: stride],
            )
            if taps.size == 0:
                part[...] = 0
            else:
                borders = ((a + pad[0]) // stride, 0, (b + pad[2]) // stride, 0)
                part[...] = input_gradient(dy, part.shape, np.ascontiguousarray(taps), 1, borders)
    return dx


def weight_gradient(dy, x, w_shape, stride=1, pad=(0, 0, 0, 0)):
    """dw and dbias."""
    (O, KH, KW, C), (N, P, Q, _) = w_shape, dy.shape
    if winograd.fits(w_shape, stride, N, (P, Q)):
        return winograd.weight_gradient(dy, x, w_shape, (pad[0], pad[2]))
    window = (KH, KW, stride, pad[0], pad[2])
    if pointwise.fits(window, x.shape, (P, Q), O):
        dw, dbias = pointwise.weight_gradient(dy, x)
        return dw.reshape(w_shape), dbias
    pixels, threads, K = N * P * Q, get_num_threads(), KH * KW * C
    rows = _block_rows(pixels, K)
    chunks = min(CHUNKS, -(-pixels // rows))
    patches, errors = (_scratch(threads, rows, width) for width in (K, O))
    parts, sums = empty((chunks, round_up(O, ROWS), round_up(K))), np.zeros((chunks, O), np.float32)
    _multiply_chunks(dy.reshape(pixels, O), x, (P, Q), window, rows, parts, sums, patches, errors)
    return parts[:, :O, :K].sum(0).reshape(w_shape), sums.sum(0)


def _block_rows(pixels, K, share=1):
    """Pixels in a block: as many as their patches fit in cache, fewer if threads would go without."""
    rows = min(PATCH_FLOATS // round_up(K), MOST_ROWS, -(-pixels // share))
    return max(rows // ROWS * ROWS, ROWS)


def _scratch(threads, rows, width):
    """Rows of that width for each thread, a vector apart, lest all of them fall on the same lines of a cache.

    What is beyond the width is multiplied too, though never used: zeros, for what happens to lie there may be slow.
    """
    scratch = empty((threads, rows, round_up(width) + LANES))
    scratch[:, :, width:] = 0
    return scratch


def _convolve(x, weights, bias, add, y, window):
    """y = patches(x) @ weights + bias + add; the result does not depend on how pixels are cut into blocks."""
    (N, P, Q, O), (V, K, _) = y.shape, weights.shape
    bias = np.zeros(O, np.float32) if bias is None else bias
    add = np.zeros((1, O), np.float32) if add is None else add.reshape(-1, O)
    KH, KW, stride, top, left = window
    if winograd.fits((O, KH, KW, x.shape[3]), stride, N, (P, Q)):
        return winograd.convolve(x, weights, bias, add, y, (top, left))
    pixels, threads = N * P * Q, get_num_threads()
    rows = _block_rows(pixels, K, threads)
    patches, results = _scratch(threads, rows, K), empty((threads, rows, V * LANES))
    _multiply_blocks(x, weights, bias, add, y.reshape(pixels, O), (P, Q), window, rows, patches, results)


@helper
def _gather(x, flat, window, P, Q, first, count, patches, row):
    """patches[r] = what the kernel sees from output pixel first + r; zeros beyond the border. Rows are `row` apart.

    window: KH, KW, stride of the kernel, and how many rows and columns of zeros lie above and left of x.
    """
    _, H, W, C = x.shape
    KH, KW, stride, top, left = window
    n, position = divmod(first, P * Q)
    p, q = divmod(position, Q)
    for r in range(count):
        v = q * stride - left
        before = min(max(-v, 0), KW)
        inside = max(min(v + KW, W) - max(v, 0), 0)
        for i in range(KH):
            u, to = p * stride + i - top, r * row + i * KW * C
            if u < 0 or u >= H:
                clear(patches, to, KW * C)
            else:
                clear(patches, to, before * C)
                copy(patches, to + before * C, flat, ((n * H + u) * W + v + before) * C, inside * C)
                clear(patches, to + (before + inside) * C, (KW - before - inside) * C)
        q += 1
        if q == Q:
            q, p = 0, p + 1
            if p == P:
                p, n = 0, n + 1


@kernel
def _multiply_blocks(x, weights, bias, add, y, size, window, rows, patches, results):
    (pixels, O), (P, Q), (V, K, _) = y.shape, size, weights.shape
    every, row, flat, flat_weights = pixels // len(add), patches.shape[2], x.ravel(), weights.ravel()
    for b in prange((pixels + rows - 1) // rows):
        first = np.int64(b) * rows
        count = min(rows, pixels - first)
        seen, result = patches[get_thread_id()].ravel(), results[get_thread_id()]
        _gather(x, flat, window, P, Q, first, count, seen, row)
        tall = (count + ROWS - 1) // ROWS * ROWS
        A, B = (seen, 0, row, LANES), (flat_weights, 0, LANES, K * LANES)
        product(A, B, (result.ravel(), 0, V * LANES, LANES), tall, V, K, True)
        for r in range(count):
            added = add[(first + r) // every]
            for o in range(O):
                y[first + r, o] = result[r, o] + bias[o] + added[o]


@kernel
def _multiply_chunks(dy, x, size, window, rows, parts, sums, patches, errors):
    """parts[chunk] = its share of dw, (O rounded up to ROWS, K in whole vectors); sums[chunk] of dbias."""
    (pixels, O), (P, Q), (chunks, tall, wide) = dy.shape, size, parts.shape
    row, column = patches.shape[2], errors.shape[2]
    blocks, flat, flat_dy = (pixels + rows - 1) // rows, x.ravel(), dy.ravel()
    for chunk in prange(chunks):
        seen, error = patches[get_thread_id()].ravel(), errors[get_thread_id()].ravel()
        part, total, start = parts[chunk].ravel(), sums[chunk], blocks * chunk // chunks
        for b in range(start, blocks * (chunk + 1) // chunks):
            first = b * rows
            count = min(rows, pixels - first)
            _gather(x, flat, window, P, Q, first, count, seen, row)
            for r in range(count):
                copy(error, r * column, flat_dy, (first + r) * O, O)
                for o in range(O):
                    total[o] += dy[first + r, o]
            A, B = (error, 0, column, LANES), (seen, 0, row, LANES)
            product_transposed(A, B, (part, 0, wide, LANES), tall, wide // LANES, count, b == start)


@kernel
def _pack(w, panels):
    """panels[v, k, l] = w[v LANES + l, k], zero beyond the last output channel; w (O, K)."""
    (O, K), V = w.shape, len(panels)
    flat, out = w.ravel(), panels.ravel()
    for v in prange(V):
        first = np.int64(v) * LANES
        if first + LANES > O:
            clear(out, first * K, LANES * K)
        turn(flat, first * K, K, min(LANES, O - first), K, out, first * K, LANES * K)


@kernel
def _pack_flipped(w, panels):
    """The weights turned round, for the input gradient: row (i, j, o) holds w[o, KH-1-i, KW-1-j, :]."""
    O, KH, KW, C = w.shape
    V = len(panels)
    flat, out, whole = w.ravel(), panels.ravel(), C // LANES
    for task in prange(V * KH * KW):
        v, tap = divmod(np.int64(task), KH * KW)
        source, to = (KH * KW - 1 - tap) * C + v * LANES, (v * KH * KW + tap) * O * LANES
        for o in range(O):
            if v < whole:
                store(out, to + o * LANES, load(flat, o * KH * KW * C + source))
            else:
                for lane in range(LANES):
                    inside = v * LANES + lane < C
                    out[to + o * LANES + lane] = flat[o * KH * KW * C + source + lane] if inside else np.float32(0)
