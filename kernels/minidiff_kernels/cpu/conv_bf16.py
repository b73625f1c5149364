"""Convolution with factors in bfloat16 and float32 sums: an implicit matrix product, without patches in memory.

A block of output pixels is one task. The pixels of x that contribute to it are rounded into scratch, each once for all
taps, with zeros where the padding is. There the row of an output pixel starts at its first tap, and every tap is at a
fixed distance: the segments of product_bf16.py. Where blocks are fewer than threads, they also split output channels.

With many pixels, a 3 x 3 convolution of float32 factors by Winograd's method (winograd.py) is faster than this, for it
needs a quarter of the multiplications; it takes the rounded weights. Gradients are in float32, of the rounded weights.

Accelerates reference/bfloat16.py.
"""

from functools import cache

import numpy as np
from numba import get_num_threads, prange
from numba.np.ufunc.parallel import get_thread_id

from ..reference.conv import output_size
from . import conv, winograd
from .half_bf16 import panels_of, round_row, segments_of, widen
from .jit import helper, kernel
from .memory import empty
from .product import ROWS
from .product_bf16 import product_of_rows
from .simd import LANES, clear, round_up

PIXELS = 128  # in a block, with the pixels around them: at 320 channels a segment 60 KB of L2
WIDEST = 64  # columns of a block
MOST_PANELS = 40  # of output channels in a task: its sums are 330 KB of L2
WINOGRAD_PIXELS = 2048  # from here on, the transform of the weights is a small part of Winograd's time
TASKS = 4  # for each thread at least, so that none waits long for another


def conv2d(x, w, bias=None, stride=1, pad=(0, 0, 0, 0), add=None):
    """y (N, P, Q, O), as in the reference; w float32, or from `pack`."""
    (N, H, W, C), (O, KH, KW, _) = x.shape, w.shape
    P, Q = output_size(x.shape, w.shape, stride, pad)
    if N * P * Q >= WINOGRAD_PIXELS and winograd.supports(w.shape, stride, N, (P, Q)):
        return conv.conv2d(x, _float32(w), bias, stride, pad, add)
    y, window = empty((N, P, Q, O)), (KH, KW, stride, pad[0], pad[2])
    bias = np.zeros(O, np.float32) if bias is None else bias
    add_rows = 1 if add is None else add.size // O
    add = np.zeros(O, np.float32) if add is None else add.reshape(-1)
    shape = (N, H, W, C, P, Q, O, N * P * Q // add_rows)
    if KH * KW * stride == 1 and not any(pad):
        shape = (1, 1, N * H * W, C, 1, N * P * Q, O, N * P * Q // add_rows)  # one row of pixels
    _convolve(x.reshape(-1), panels_of(w), bias, add, y.reshape(-1), shape, window)
    return y


def conv2d_backward(dy, x, w, stride=1, pad=(0, 0, 0, 0), need_dx=True, need_dw=True):
    """The gradients dx, dw, dbias, None if not needed, in float32."""
    return conv.conv2d_backward(dy, x, _float32(w), stride, pad, need_dx, need_dw)


@kernel
def _multiply(x, constants, y, shape, window, size, segments, scratch):
    (panels, bias, add, zeros), (N, _, _, _, P, Q, O, _), (images, rows, columns, groups) = constants, shape, size
    (shifts, length), (pairs, sums, places) = segments, scratch
    down, across = (P + rows - 1) // rows, (Q + columns - 1) // columns
    V, panel = (O + LANES - 1) // LANES, len(shifts) * length * LANES
    strips = (V + 2) // 3
    width, pixel = (columns - 1) * window[2] + window[1], len(shifts) // (window[0] * window[1]) * length + LANES
    for task in prange((N + images - 1) // images * down * across * groups):
        block, group = divmod(np.int64(task), groups)
        block, b = divmod(block, across)
        n, a = divmod(block, down)
        first = (n * images, a * rows, b * columns)
        here = (min(images, N - first[0]), min(rows, P - first[1]), min(columns, Q - first[2]))
        thread = get_thread_id()
        rounded, total, at = pairs[thread], sums[thread], places[thread]
        _round_pixels(x, shape, window, first, here, width, pixel, rounded)
        M = _find_rows(at, shape, window, first, here, width, pixel)
        v = 3 * (strips * group // groups)
        stop = min(3 * (strips * (group + 1) // groups), V)
        B = (panels, v * panel, panel)
        A = (rounded, at[0], 0)
        if O % LANES == 0:
            start, C = (add, at[2], v * LANES, LANES), (y, at[1], v * LANES, LANES)
            product_of_rows(A, segments, B, start, (bias, zeros, v * LANES), C, M, stop - v)
        else:
            _multiply_padded(A, segments, B, (bias, add, zeros), y, at, total, (M, v, stop, V * LANES, O))


@helper
def _multiply_padded(A, segments, B, constants, y, places, sums, sizes):
    """The product of a block where the output channels do not fill the panels, by way of sums (M, row)."""
    (bias, add, zeros), (M, v, stop, row, O) = constants, sizes
    clear(sums, 0, M * row)
    for m in range(M):
        places[3, m] = m * row
    C = (sums, places[3], v * LANES, LANES)
    product_of_rows(A, segments, B, C, (zeros, zeros, 0), C, M, stop - v)
    for m in range(M):
        for o in range(v * LANES, min(stop * LANES, O)):
            y[places[1, m] + o] = sums[m * row + o] + bias[o] + add[places[2, m] + o]


def _float32(w):
    return w if w.dtype == np.float32 else widen(w)


def _convolve(x, panels, bias, add, y, shape, window):
    (N, _, _, C, P, Q, O, _), (KH, KW, stride, _, _) = shape, window
    (images, rows, columns), threads, V = _block(N, P, Q), get_num_threads(), -(-O // LANES)
    blocks = -(-N // images) * -(-P // rows) * -(-Q // columns)
    groups = min(max(-(-TASKS * threads // blocks), -(-V // MOST_PANELS)), -(-V // 3))
    (count, length), inside = segments_of(C), ((rows - 1) * stride + KH, (columns - 1) * stride + KW)
    pixel = count * length + LANES  # the extra vector is for round_row, and keeps pixels out of the same cache sets
    pairs = empty((threads, images * inside[0] * inside[1] * pixel))
    M = round_up(images * rows * columns, ROWS)
    sums = empty((threads, M * V * LANES if O % LANES else 1))
    places = np.empty((threads, 4, M), np.int64)
    shifts = _segments(KH, KW, inside[1], pixel, count, length)
    zeros = np.zeros(round_up(O), np.float32)
    scratch, size = (pairs, sums, places), (images, rows, columns, groups)
    _multiply(x, (panels, bias, add, zeros), y, shape, window, size, (shifts, length), scratch)


def _block(N, P, Q):
    """Images, rows and columns of a block of about PIXELS output pixels."""
    if P * Q <= PIXELS and P > 1:
        return min(PIXELS // (P * Q), N), P, Q
    columns = Q if P > 1 and Q <= WIDEST else min(PIXELS if P == 1 else WIDEST // 2, Q)
    return 1, min(PIXELS // columns, P), columns


@cache
def _segments(KH, KW, width, pixel, count, length):
    """Where the segments of a pixel's patch start, counted from its first tap, in the order of `pack`."""
    c, i, j = np.meshgrid(np.arange(count), np.arange(KH), np.arange(KW), indexing="ij")
    return ((i * width + j) * pixel + c * length).ravel()


@helper
def _round_pixels(x, shape, window, first, size, width, pixel, pairs):
    """Round the pixels of x that a block of outputs depends on: pairs (images, rows, width, pixel)."""
    (_, H, W, C, _, _, _, _), (KH, KW, stride, top, left) = shape, window
    (n, p, q), (images, rows, columns) = first, size
    height = (rows - 1) * stride + KH
    for g in range(images):
        for i in range(height):
            u = p * stride - top + i
            for j in range((columns - 1) * stride + KW):
                v, to = q * stride - left + j, ((g * height + i) * width + j) * pixel
                if u < 0 or u >= H or v < 0 or v >= W:
                    clear(pairs, to, pixel)
                else:
                    round_row(x, (((n + g) * H + u) * W + v) * C, C, pairs, to, pixel - LANES)


@helper
def _find_rows(places, shape, window, first, size, width, pixel):
    """Where each output pixel of a block has its row in the rounded pixels, in y and in add. Returns how many rows.

    The last pixel is repeated until they are a multiple of ROWS: it is computed again, and written over itself.
    """
    (_, _, _, _, P, Q, O, per_add), (KH, _, stride, _, _) = shape, window
    (n, p, q), (images, rows, columns) = first, size
    height, m = (rows - 1) * stride + KH, 0
    for g in range(images):
        for i in range(rows):
            for j in range(columns):
                output = ((n + g) * P + p + i) * Q + q + j
                places[0, m] = ((g * height + i * stride) * width + j * stride) * pixel
                places[1, m] = output * O
                places[2, m] = output // per_add * O
                m += 1
    while m % ROWS:
        places[:, m] = places[:, m - 1]
        m += 1
    return m
