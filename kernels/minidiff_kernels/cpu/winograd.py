"""Convolution 3x3 with stride 1 after Winograd, F(4x4, 3x3): 36 products for 16 outputs instead of 144.

Lavin & Gray 2015 (arXiv:1509.09308, section 4): cut the output into tiles of 4 x 4, each of which sees 6 x 6
of the input. With the tile d, the kernel g and the product taken number by number,

    forward           y  = A^T [ (G g G^T) * (B^T d B) ] A                        summed over input channels
    input gradient    the same on dy, with the kernel turned round
    weight gradient   dg = G^T [ sum over tiles of (A dy A^T) * (B^T d B) ] G

In the transformed domain there are 36 separate positions, and at each the sum over channels is a plain matrix
product (tiles, C) @ (C, O). A block of tiles is transformed into scratch, multiplied, and transformed back
while it lies in the second-level cache; the whole transformed picture is never stored.

The transforms are those of polynomial interpolation at the points 0, a, -a, b, -b and infinity. The usual
choice is a, b = 1, 2; with 5/8 and 3/2 the matrices are smaller and the rounding error is halved.
"""

import numpy as np
from numba import get_num_threads, prange
from numba.np.ufunc.parallel import get_thread_id

from .jit import helper, kernel
from .memory import empty
from .simd import LANES, ROWS, add_product, clear, copy, load, store

SCRATCH_FLOATS = 160 * 1024  # transformed tiles of one thread: 640 KB of a second-level cache of at least 1 MB
MOST_TILES = 48
CHUNKS = 8  # parts into which the sum over tiles of a weight gradient is cut, whatever the threads
SKEW = 5 * 16  # floats between the 36 planes, lest they all fall on the same lines of the first-level cache

_f = np.float32
A, B = _f(5 / 8), _f(3 / 2)
A2, B2, A3, B3 = _f(A**2), _f(B**2), _f(A**3), _f(B**3)
P, Q = _f(A2 * B2), _f(A2 + B2)
G0, GA, GB = _f(1 / P), _f(1 / (2 * A2 * (A2 - B2))), _f(1 / (2 * B2 * (B2 - A2)))


def fits(w_shape, stride, size) -> bool:
    """Whether a convolution with output of that size (P, Q) goes this way.

    It takes whole vectors of channels. Of fewer than 32 channels the transforms cost what the products save.
    """
    O, KH, KW, C = w_shape
    whole = C % LANES == 0 and O % LANES == 0 and min(C, O) >= 32
    return (KH, KW, stride) == (3, 3, 1) and whole and min(size) >= 4


@helper
def _input(source, s, step, to, t, to_step):
    """B^T d, for one column of six vectors: to[t + i to_step] = the sum over j of B^T[i, j] source[s + j step]."""
    d0, d1, d2 = load(source, s), load(source, s + step), load(source, s + 2 * step)
    d3, d4, d5 = load(source, s + 3 * step), load(source, s + 4 * step), load(source, s + 5 * step)
    even_a, odd_a = d4 - B2 * d2, d3 - B2 * d1
    even_b, odd_b = d4 - A2 * d2, d3 - A2 * d1
    store(to, t, P * d0 - Q * d2 + d4)
    store(to, t + to_step, even_a + A * odd_a)
    store(to, t + 2 * to_step, even_a - A * odd_a)
    store(to, t + 3 * to_step, even_b + B * odd_b)
    store(to, t + 4 * to_step, even_b - B * odd_b)
    store(to, t + 5 * to_step, P * d1 - Q * d3 + d5)


@helper
def _output(source, s, step, to, t, to_step):
    """A^T m: six vectors become four."""
    m0, m5 = load(source, s), load(source, s + 5 * step)
    m1, m2, m3, m4 = (
        load(source, s + step), load(source, s + 2 * step), load(source, s + 3 * step), load(source, s + 4 * step),
    )  # fmt: skip
    sum_a, sum_b, difference_a, difference_b = m1 + m2, m3 + m4, m1 - m2, m3 - m4
    store(to, t, m0 + sum_a + sum_b)
    store(to, t + to_step, A * difference_a + B * difference_b)
    store(to, t + 2 * to_step, A2 * sum_a + B2 * sum_b)
    store(to, t + 3 * to_step, A3 * difference_a + B3 * difference_b + m5)


@helper
def _output_gradient(source, s, step, to, t, to_step):
    """A dy: four vectors become six."""
    y0, y1 = load(source, s), load(source, s + step)
    y2, y3 = load(source, s + 2 * step), load(source, s + 3 * step)
    even_a, odd_a = y0 + A2 * y2, y1 + A2 * y3
    even_b, odd_b = y0 + B2 * y2, y1 + B2 * y3
    store(to, t, y0)
    store(to, t + to_step, even_a + A * odd_a)
    store(to, t + 2 * to_step, even_a - A * odd_a)
    store(to, t + 3 * to_step, even_b + B * odd_b)
    store(to, t + 4 * to_step, even_b - B * odd_b)
    store(to, t + 5 * to_step, y3)


@helper
def _kernel(source, s, step, to, t, to_step):
    """G g: three vectors become six."""
    g0, g1, g2 = load(source, s), load(source, s + step), load(source, s + 2 * step)
    even_a, odd_a = GA * g0 + (GA * A2) * g2, (GA * A) * g1
    even_b, odd_b = GB * g0 + (GB * B2) * g2, (GB * B) * g1
    store(to, t, G0 * g0)
    store(to, t + to_step, even_a + odd_a)
    store(to, t + 2 * to_step, even_a - odd_a)
    store(to, t + 3 * to_step, even_b + odd_b)
    store(to, t + 4 * to_step, even_b - odd_b)
    store(to, t + 5 * to_step, g2)


@helper
def _kernel_gradient(source, s, step, to, t, to_step):
    """G^T u: six vectors become three."""
    u0, u5 = load(source, s), load(source, s + 5 * step)
    u1, u2, u3, u4 = (
        load(source, s + step), load(source, s + 2 * step), load(source, s + 3 * step), load(source, s + 4 * step),
    )  # fmt: skip
    sum_a, sum_b, difference_a, difference_b = u1 + u2, u3 + u4, u1 - u2, u3 - u4
    store(to, t, G0 * u0 + GA * sum_a + GB * sum_b)
    store(to, t + to_step, (GA * A) * difference_a + (GB * B) * difference_b)
    store(to, t + 2 * to_step, (GA * A2) * sum_a + (GB * B2) * sum_b + u5)


@kernel
def transform_weights(panels, U):
    """U[i, j] = (G g G^T)[i, j] of panels (V, 3, 3, K, LANES) -> (36, V, K, LANES)."""
    V, K = panels.shape[0], panels.shape[3]
    flat, out = panels.ravel(), U.ravel()
    plane = V * K * LANES
    for v in prange(V):
        half = np.empty(18 * LANES, np.float32)  # G g, 6 x 3
        for k in range(K):
            here = (v * 9 * K + k) * LANES
            for j in range(3):
                _kernel(flat, here + j * K * LANES, 3 * K * LANES, half, j * LANES, 3 * LANES)
            for i in range(6):
                _kernel(half, 3 * i * LANES, LANES, out, 6 * i * plane + (v * K + k) * LANES, plane)


@helper
def _take_tile(x, flat, n, top, left, scratch, tile, side):
    """Copy side x side pixels of picture n from (top, left) on to scratch[tile:]; zeros beyond the border."""
    _, H, W, C = x.shape
    before, after = max(-left, 0), max(left + side - W, 0)
    for i in range(side):
        to = tile + i * side * C
        if top + i < 0 or top + i >= H or before + after >= side:
            clear(scratch, to, side * C)
        else:
            clear(scratch, to, before * C)
            start = ((n * H + top + i) * W + left + before) * C
            copy(scratch, to + before * C, flat, start, (side - before - after) * C)
            clear(scratch, to + (side - after) * C, after * C)


@helper
def _input_tile(scratch, tile, C, at, plane):
    """From scratch[tile:], a tile (6, 6, C), its transform: (B^T d B)[i, j] goes to `at` in the plane of (i, j)."""
    for e in range(tile, tile + 6 * C, LANES):
        _input(scratch, e, 6 * C, scratch, e, 6 * C)
    for i in range(6):
        for c in range(0, C, LANES):
            _input(scratch, tile + 6 * i * C + c, C, scratch, at + 6 * i * plane + c, plane)


def tiles_of(size):
    """Tiles down and across an output of that size."""
    return -(-size[0] // 4), -(-size[1] // 4)


def _block_tiles(tiles, channels, share=1):
    """Tiles in a block: as many as fit in cache, fewer if threads would go without; a multiple of ROWS."""
    fitting = min(SCRATCH_FLOATS // (36 * channels), MOST_TILES, -(-tiles // share))
    return max(fitting // ROWS * ROWS, ROWS)


def product(x, panels, bias, add, y, pad):
    """y = the convolution of x with the weights in panels (V, 9 K, LANES), + bias + add; pad: zeros above, left.

    bias (O,), add (1, O) or (N, O) or (pixels, O).
    """
    (N, height, width, O), (V, K9, _) = y.shape, panels.shape
    K = K9 // 9
    U = empty((36, V, K, LANES))
    transform_weights(panels.reshape(V, 3, 3, K, LANES), U)
    (down, across), threads = tiles_of((height, width)), get_num_threads()
    tiles = _block_tiles(N * down * across, K + O, threads)
    seen = empty((threads, 36 * (tiles * K + SKEW) + 36 * K))
    results = empty((threads, 36 * (tiles * O + SKEW) + 40 * O))
    geometry = (down, across, height, width)
    _product_kernel(x, U.ravel(), bias, add.ravel(), y.ravel(), geometry, pad, tiles, seen, results)


@kernel
def _product_kernel(x, U, bias, add, y, geometry, pad, tiles, seen, results):
    N, _, _, K = x.shape
    O = len(bias)
    (down, across, height, width), (top, left) = geometry, pad
    total, flat, V = N * down * across, x.ravel(), O // LANES
    every = len(y) // len(add)  # pixels that share a row of add
    plane_in, plane_out = tiles * K + SKEW, tiles * O + SKEW
    tile, half, finished = 36 * plane_in, 36 * plane_out, 36 * plane_out + 24 * O  # where these lie in scratch
    for block in prange((total + tiles - 1) // tiles):
        first = np.int64(block) * tiles
        count = min(tiles, total - first)
        d, m = seen[get_thread_id()], results[get_thread_id()]
        for t in range(count):
            n, position = divmod(first + t, down * across)
            p, q = divmod(position, across)
            _take_tile(x, flat, n, 4 * p - top, 4 * q - left, d, tile, 6)
            _input_tile(d, tile, K, t * K, plane_in)
        clear(m, 0, 36 * plane_out)
        tall = (count + ROWS - 1) // ROWS * ROWS
        for i in range(36):
            add_product(d, i * plane_in, K, 1, U, i * V * K * LANES, K * LANES, LANES, m, i * plane_out, O, tall, V, K)
        for t in range(count):
            n, position = divmod(first + t, down * across)
            p, q = divmod(position, across)
            for j in range(6):
                for o in range(0, O, LANES):
                    _output(m, j * plane_out + t * O + o, 6 * plane_out, m, half + j * O + o, 6 * O)
            for i in range(4):
                for o in range(0, O, LANES):
                    _output(m, half + 6 * i * O + o, O, m, finished + 4 * i * O + o, O)
            for i in range(min(4, height - 4 * p)):
                for j in range(min(4, width - 4 * q)):
                    pixel, done = (n * height + 4 * p + i) * width + 4 * q + j, finished + (4 * i + j) * O
                    for o in range(0, O, LANES):
                        extra = load(bias, o) + load(add, pixel // every * O + o)
                        store(y, pixel * O + o, load(m, done + o) + extra)


def weight_gradient(dy, x, w_shape, pad):
    """dw (O, 3, 3, C)."""
    (N, height, width, O), C = dy.shape, x.shape[3]
    (down, across), threads = tiles_of((height, width)), get_num_threads()
    total = N * down * across
    tiles = _block_tiles(total, C + O)
    chunks = min(CHUNKS, -(-total // tiles))
    dU = empty((chunks, 36 * O * C))
    seen = empty((threads, 36 * (tiles * C + SKEW) + 36 * C))
    errors = empty((threads, 36 * (tiles * O + SKEW) + 40 * O))
    _weight_gradient_kernel(dy, x, dU, (down, across), pad, tiles, seen, errors)
    dw = empty(w_shape)
    _transform_gradient(dU, dw.ravel(), O, C)
    return dw


@kernel
def _weight_gradient_kernel(dy, x, dU, geometry, pad, tiles, seen, errors):
    """dU[chunk] (36, O, C) = the chunk's sum over tiles of (A dy A^T) * (B^T d B)."""
    (N, _, _, C), O = x.shape, dy.shape[3]
    (down, across), (top, left) = geometry, pad
    total, chunks, flat, flat_dy = N * down * across, len(dU), x.ravel(), dy.ravel()
    blocks = (total + tiles - 1) // tiles
    plane_in, plane_out = tiles * C + SKEW, tiles * O + SKEW
    tile, error, half = 36 * plane_in, 36 * plane_out, 36 * plane_out + 16 * O  # where these lie in scratch
    for chunk in prange(chunks):
        d, e, total_dU = seen[get_thread_id()], errors[get_thread_id()], dU[chunk]
        clear(total_dU, 0, 36 * O * C)
        for block in range(blocks * np.int64(chunk) // chunks, blocks * (np.int64(chunk) + 1) // chunks):
            first = block * tiles
            count = min(tiles, total - first)
            for t in range(count):
                n, position = divmod(first + t, down * across)
                p, q = divmod(position, across)
                _take_tile(x, flat, n, 4 * p - top, 4 * q - left, d, tile, 6)
                _input_tile(d, tile, C, t * C, plane_in)
                _take_tile(dy, flat_dy, n, 4 * p, 4 * q, e, error, 4)
                for v in range(0, 4 * O, LANES):
                    _output_gradient(e, error + v, 4 * O, e, half + v, 4 * O)
                for i in range(6):
                    for o in range(0, O, LANES):
                        _output_gradient(e, half + 4 * i * O + o, O, e, 6 * i * plane_out + t * O + o, plane_out)
            for i in range(36):
                add_product(
                    e, i * plane_out, 1, O, d, i * plane_in, LANES, C, total_dU, i * O * C, C, O, C // LANES, count
                )


@kernel
def _transform_gradient(dU, dw, O, C):
    """dw (O, 3, 3, C) = G^T (sum of dU over chunks) G."""
    plane, chunks = O * C, len(dU)
    for o in prange(O):
        scratch = np.empty((36 + 18) * LANES, np.float32)  # the sum, 6 x 6, and G^T of it, 3 x 6
        for c in range(0, C, LANES):
            at = np.int64(o) * C + c
            for i in range(36):
                u = load(dU[0], i * plane + at)
                for chunk in range(1, chunks):
                    u = u + load(dU[chunk], i * plane + at)
                store(scratch, i * LANES, u)
            for j in range(6):
                _kernel_gradient(scratch, j * LANES, 6 * LANES, scratch, (36 + j) * LANES, 6 * LANES)
            for i in range(3):
                _kernel_gradient(scratch, (36 + 6 * i) * LANES, LANES, dw, (np.int64(o) * 9 + 3 * i) * C + c, C)
