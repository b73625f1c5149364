"""Convolution by blocked im2col: the patch matrix is gathered in L2 block by block and never stored whole.

A block is up to 128 output pixels. The patch of a pixel is the KH x KW x C window of x that contributes to it. The
patches of a block are copied into scratch (rows, KH KW C) that stays in L2 (im2col, Chellapilla et al. 2006), and one
matrix product gives the block's outputs:

    forward          y[block]  =  patches(x)[block] @ w            + bias + add
    input gradient   dx[block] = patches(dy)[block] @ flipped w    for each residue of row and column modulo the stride
    weight gradient  dw       += dy[block]^T @ patches(x)[block]

Gathering costs a few percent of the product and handles stride, padding and any kernel size. Most convolutions of a
U-Net, 3x3 with stride 1, run in winograd.py; 1x1 convolutions, which need no gathering, in pointwise.py. Where the
weights outweigh the pixels, as in large networks at a small batch, winograd_streamed.py and streamed.py take over.
"""

import numpy as np
from numba import get_num_threads, prange
from numba.np.ufunc.parallel import get_thread_id

from ..reference.conv import output_size
from . import pointwise, streamed, winograd, winograd_streamed, winograd_strided
from .jit import helper, kernel
from .memory import empty
from .product import ROWS, product, product_transposed
from .simd import LANES, clear, copy, load, round_up, store, transpose_to_panels

PATCH_FLOATS = 96 * 1024  # a block's patches: 384 KB of an L2 of at least 512 KB
MAX_ROWS = 128  # pixels in a block
CHUNKS = 8  # of a weight gradient's sum over pixels; independent of the number of threads


def conv2d(x, w, bias=None, stride=1, pad=(0, 0, 0, 0), add=None):
    """y (N, P, Q, O), as in the reference; w may be float16."""
    N, (O, KH, KW, C), (P, Q) = len(x), w.shape, output_size(x.shape, w.shape, stride, pad)
    y, window = empty((N, P, Q, O)), (KH, KW, stride, pad[0], pad[2])
    w = w.view(np.uint16) if w.dtype == np.float16 else w  # its bits, which `load` widens
    few = streamed.supports(w.shape, N * P * Q)
    if winograd_streamed.supports(w.shape, stride, N, (P, Q)):
        winograd_streamed.convolve(x, w, *_terms(bias, add, O), y, (pad[0], pad[2]))
    elif few and not winograd_strided.supports(w.shape, stride, N, (P, Q)):
        streamed.multiply(_rows(x, window, (P, Q)), w, *_terms(bias, add, O), y.reshape(-1, O))
    elif pointwise.supports(window, x.shape, (P, Q), O):
        pointwise.convolve(x, w.reshape(O, C), bias, add, y)
    else:
        weights = empty((-(-O // LANES), KH * KW * C, LANES))
        _pack(w.reshape(O, -1), weights)
        _convolve(x, weights, *_terms(bias, add, O), y, window)
    return y


def _terms(bias, add, O):
    """bias (O,) and add (.., O), zeros if they are None."""
    bias = np.zeros(O, np.float32) if bias is None else bias
    return bias, np.zeros((1, O), np.float32) if add is None else add.reshape(-1, O)


def _rows(x, window, size):
    """The patches (rows, KH KW C) of all pixels of the output, rows rounded up to ROWS; x itself where they are."""
    (N, _, _, C), (KH, KW, *_), (P, Q) = x.shape, window, size
    if (KH, KW) == (1, 1) and (P, Q) == x.shape[1:3] and N * P * Q % ROWS == 0:
        return x.reshape(-1, C)
    rows = empty((round_up(N * P * Q, ROWS), KH * KW * C))
    rows[N * P * Q :] = 0
    _gather(x, window, size, N * P * Q, rows)
    return rows


def conv2d_backward(dy, x, w, stride=1, pad=(0, 0, 0, 0), need_dx=True, need_dw=True):
    """The gradients dx, dw, dbias, None if not needed."""
    dx = input_gradient(dy, x.shape, w, stride, pad) if need_dx else None
    dw, dbias = weight_gradient(dy, x, w.shape, stride, pad) if need_dw else (None, None)
    return dx, dw, dbias


def input_gradient(dy, x_shape, w, stride=1, pad=(0, 0, 0, 0)):
    """dx: the convolution of dy with the flipped kernel, input and output channels exchanged.

    With stride s, pixel s u + a of x contributes through the taps i = (a + pad) mod s, + s, + 2 s, ... only. So each
    residue (a, b) of row and column is a convolution with stride 1 and every s-th tap.
    """
    dx = empty(x_shape)
    if stride == 1:
        O, KH, KW, C = w.shape
        window = (KH, KW, 1, KH - 1 - pad[0], KW - 1 - pad[2])
        if pointwise.supports(window, dy.shape, x_shape[1:3], C):
            return pointwise.input_gradient(dy, w.reshape(O, C), dx)
        if winograd_streamed.supports((C, KH, KW, O), 1, len(dy), x_shape[1:3]):
            winograd_streamed.convolve(dy, w, *_terms(None, None, C), dx, window[3:], flipped=True)
            return dx
        weights = empty((-(-C // LANES), KH * KW * O, LANES))
        _pack_flipped(w, weights)
        _convolve(dy, weights, *_terms(None, None, C), dx, window)
        return dx
    if winograd_strided.supports(w.shape, stride, len(dy), dy.shape[1:3]):
        O, KH, KW, C = w.shape
        weights = empty((C // LANES, KH * KW * O, LANES))
        _pack_flipped(w, weights)
        return winograd_strided.input_gradient(dy, weights, dx, (pad[0], pad[2]))
    for a in range(min(stride, x_shape[1])):
        for b in range(min(stride, x_shape[2])):
            part = dx[:, a::stride, b::stride]
            taps = w[:, (a + pad[0]) % stride :: stride, (b + pad[2]) % stride :: stride]
            if taps.size == 0:
                part[...] = 0
            else:
                borders = ((a + pad[0]) // stride, 0, (b + pad[2]) // stride, 0)
                part[...] = input_gradient(dy, part.shape, np.ascontiguousarray(taps), 1, borders)
    return dx


def weight_gradient(dy, x, w_shape, stride=1, pad=(0, 0, 0, 0)):
    """dw and dbias."""
    (O, KH, KW, C), (N, P, Q, _) = w_shape, dy.shape
    if winograd.supports(w_shape, stride, N, (P, Q)):
        return winograd.weight_gradient(dy, x, w_shape, (pad[0], pad[2]))
    if winograd_strided.supports(w_shape, stride, N, (P, Q)):
        return winograd_strided.weight_gradient(dy, x, w_shape, (pad[0], pad[2]))
    window = (KH, KW, stride, pad[0], pad[2])
    if pointwise.supports(window, x.shape, (P, Q), O):
        dw, dbias = pointwise.weight_gradient(dy, x)
        return dw.reshape(w_shape), dbias
    pixels, threads, K = N * P * Q, get_num_threads(), KH * KW * C
    rows = _block_rows(pixels, K)
    chunks = min(CHUNKS, -(-pixels // rows))
    patches, dy_rows = (_scratch(threads, rows, width) for width in (K, O))
    dw_chunks = empty((chunks, round_up(O, ROWS), round_up(K)))
    dbias_chunks = np.zeros((chunks, O), np.float32)
    _multiply_chunks(dy.reshape(pixels, O), x, (P, Q), window, rows, dw_chunks, dbias_chunks, patches, dy_rows)
    return dw_chunks[:, :O, :K].sum(0).reshape(w_shape), dbias_chunks.sum(0)


def _block_rows(pixels, K, threads=1):
    """Pixels in a block, a multiple of ROWS: their patches fit in PATCH_FLOATS, and each thread gets a block."""
    rows = min(PATCH_FLOATS // round_up(K), MAX_ROWS, -(-pixels // threads))
    return max(rows // ROWS * ROWS, ROWS)


def _scratch(threads, rows, width):
    """(threads, rows, width in whole vectors + LANES); the extra vector keeps rows out of the same cache sets.

    The columns beyond the width are multiplied too, though never used. They are zero, since denormals would be slow.
    """
    scratch = empty((threads, rows, round_up(width) + LANES))
    scratch[:, :, width:] = 0
    return scratch


def _convolve(x, weights, bias, add, y, window):
    """y = patches(x) @ weights + bias + add. Blocks are independent: the result does not depend on their size."""
    (N, P, Q, O), (V, K, _) = y.shape, weights.shape
    KH, KW, stride, top, left = window
    if winograd.supports((O, KH, KW, x.shape[3]), stride, N, (P, Q)):
        return winograd.convolve(x, weights, bias, add, y, (top, left))
    if winograd_strided.supports((O, KH, KW, x.shape[3]), stride, N, (P, Q)):
        return winograd_strided.convolve(x, weights, bias, add, y, (top, left))
    pixels, threads = N * P * Q, get_num_threads()
    rows = _block_rows(pixels, K, threads)
    patches, results = _scratch(threads, rows, K), empty((threads, rows, V * LANES))
    _multiply_blocks(x, weights, bias, add, y.reshape(pixels, O), (P, Q), window, rows, patches, results)


@helper
def _gather_patches(x, flat, window, P, Q, first, count, patches, row):
    """patches[r] = the patch (KH, KW, C) of output pixel first + r, for r < count; padding is zero.

    window: KH, KW, stride, and the padding above and left of x. row: the stride of the rows of patches.
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
def _gather(x, window, size, count, rows):
    """rows[r] = the patch of output pixel r, for r < count."""
    P, Q = size
    flat, K, out = x.ravel(), rows.shape[1], rows.ravel()
    for block in prange((count + ROWS - 1) // ROWS):
        first = np.int64(block) * ROWS
        _gather_patches(x, flat, window, P, Q, first, min(ROWS, count - first), out[first * K :], K)


@kernel
def _multiply_blocks(x, weights, bias, add, y, size, window, rows, patches, results):
    (pixels, O), (P, Q), (V, K, _) = y.shape, size, weights.shape
    row, flat, flat_weights = patches.shape[2], x.ravel(), weights.ravel()
    pixels_per_add = pixels // len(add)  # that share a row of add
    for b in prange((pixels + rows - 1) // rows):
        first = np.int64(b) * rows
        count = min(rows, pixels - first)
        patch, result = patches[get_thread_id()].ravel(), results[get_thread_id()]
        _gather_patches(x, flat, window, P, Q, first, count, patch, row)
        M = (count + ROWS - 1) // ROWS * ROWS
        A, B = (patch, 0, row, LANES), (flat_weights, 0, LANES, K * LANES)
        product(A, B, (result.ravel(), 0, V * LANES, LANES), M, V, K, True)
        for r in range(count):
            add_row = add[(first + r) // pixels_per_add]
            for o in range(O):
                y[first + r, o] = result[r, o] + bias[o] + add_row[o]


@kernel
def _multiply_chunks(dy, x, size, window, rows, dw_chunks, dbias_chunks, patches, dy_rows):
    """The sums of each chunk of pixels: dw (O rounded up to ROWS, K in whole vectors) and dbias (O,)."""
    (pixels, O), (P, Q), (chunks, M, width) = dy.shape, size, dw_chunks.shape
    row, dy_row = patches.shape[2], dy_rows.shape[2]
    blocks, flat, flat_dy = (pixels + rows - 1) // rows, x.ravel(), dy.ravel()
    for chunk in prange(chunks):
        patch, gradient = patches[get_thread_id()].ravel(), dy_rows[get_thread_id()].ravel()
        dw, dbias = dw_chunks[chunk].ravel(), dbias_chunks[chunk]
        start = blocks * chunk // chunks
        for b in range(start, blocks * (chunk + 1) // chunks):
            first = b * rows
            count = min(rows, pixels - first)
            _gather_patches(x, flat, window, P, Q, first, count, patch, row)
            for r in range(count):
                copy(gradient, r * dy_row, flat_dy, (first + r) * O, O)
                for o in range(O):
                    dbias[o] += dy[first + r, o]
            A, B = (gradient, 0, dy_row, LANES), (patch, 0, row, LANES)
            product_transposed(A, B, (dw, 0, width, LANES), M, width // LANES, count, b == start)


@kernel
def _pack(w, panels):
    """Pack w (O, K): panels[v, k, lane] = w[v LANES + lane, k], zero beyond the last output channel."""
    (O, K), V = w.shape, len(panels)
    flat, out = w.ravel(), panels.ravel()
    for v in prange(V):
        first = np.int64(v) * LANES
        if first + LANES > O:
            clear(out, first * K, LANES * K)
        transpose_to_panels(flat, first * K, K, min(LANES, O - first), K, out, first * K, LANES * K)


@kernel
def _pack_flipped(w, panels):
    """Pack the flipped kernel for the input gradient: row (i, j, o) holds w[o, KH-1-i, KW-1-j, :]."""
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
