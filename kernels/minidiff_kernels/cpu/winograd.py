"""Convolution 3x3 with stride 1 after Winograd, F(4x4, 3x3): 36 products for 16 outputs instead of 144.

Lavin & Gray 2015 (arXiv:1509.09308, section 4): cut the output into tiles of 4 x 4, each of which sees 6 x 6
of the input. With the tile d, the kernel g and the product taken number by number,

    forward           y  = A^T [ (G g G^T) * (B^T d B) ] A                        summed over input channels
    input gradient    the same on dy, with the kernel turned round
    weight gradient   dg = G^T [ sum over tiles of (A dy A^T) * (B^T d B) ] G

In the transformed domain there are 36 separate positions, and at each the sum over channels is a plain matrix
product (tiles, C) @ (C, O). A block of tiles is transformed into scratch, multiplied, and transformed back
while it lies in the second-level cache; all transformed pictures together are never stored. The transforms
themselves are in winograd_transforms.py.
"""

import numpy as np
from numba import get_num_threads, prange
from numba.np.ufunc.parallel import get_thread_id

from .jit import helper, kernel
from .memory import empty
from .product import K_CHUNK, ROWS, product, product_transposed
from .simd import LANES, clear, copy, load, prepare, round_up, store
from .winograd_transforms import input_transform, kernel_gradient, kernel_transform, output_gradient, output_transform

SCRATCH_FLOATS = 120 * 1024  # transformed tiles of one thread: 480 KB of a second-level cache of at least 1 MB
MOST_TILES = 48
RUN = 8  # tiles that a thread transforms at a time, in a weight gradient
SHARED_FLOATS = 1024 * 1024  # transformed tiles that threads share, in a weight gradient: 4 MB of the last cache
SKEW = 5 * 16  # floats between the 36 planes, lest they all fall on the same lines of the first-level cache


def fits(w_shape, stride, N, size) -> bool:
    """Whether a convolution with N outputs of that size (P, Q) goes this way.

    It takes whole vectors of channels. Of fewer than 32 channels the transforms cost what the products save; so does
    the transform of the weights where there are fewer than 8 tiles.
    """
    (O, KH, KW, C), (down, across) = w_shape, tiles_of(size)
    whole = C % LANES == 0 and O % LANES == 0 and min(C, O) >= 32
    return (KH, KW, stride) == (3, 3, 1) and whole and min(size) >= 4 and N * down * across >= 8


def tiles_of(size):
    """Tiles down and across an output of that size."""
    return -(-size[0] // 4), -(-size[1] // 4)


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
                kernel_transform(flat, here + j * K * LANES, 3 * K * LANES, half, j * LANES, 3 * LANES)
            for i in range(6):
                kernel_transform(half, 3 * i * LANES, LANES, out, 6 * i * plane + (v * K + k) * LANES, plane)


@helper
def _strip(x, flat, n, top, left, rows, columns, strip):
    """Copy rows x columns pixels of picture n from (top, left) on to strip; zeros beyond the border."""
    _, H, W, C = x.shape
    before = min(max(-left, 0), columns)
    inside = max(min(left + columns, W) - max(left, 0), 0)
    for i in range(rows):
        to = i * columns * C
        if top + i < 0 or top + i >= H:
            clear(strip, to, columns * C)
        else:
            clear(strip, to, before * C)
            copy(strip, to + before * C, flat, ((n * H + top + i) * W + left + before) * C, inside * C)
            clear(strip, to + (before + inside) * C, (columns - before - inside) * C)


@helper
def _see(x, flat, n, p, q, run, pad, strip, planes, at, plane, panel):
    """Transform what tiles (p, q) to (p, q + run - 1) of picture n see, into planes[at:].

    (B^T d B)[i, j] goes to plane (i, j), which consists of panels: (channels / LANES, tiles, LANES).
    Down first, for all columns of the strip at once: neighbouring tiles share two of their six.
    """
    C, columns = x.shape[3], 4 * run + 2
    _strip(x, flat, n, 4 * p - pad[0], 4 * q - pad[1], 6, columns, strip)
    for e in range(0, columns * C, LANES):
        input_transform(strip, e, columns * C, strip, e, columns * C)
    for i in range(6):
        for t in range(run):
            for v in range(C // LANES):
                to = at + 6 * i * plane + v * panel + t * LANES
                for j in range(6):
                    prepare(planes, to + LANES + j * plane)
                input_transform(strip, (i * columns + 4 * t) * C + v * LANES, C, planes, to, plane)


@helper
def _see_errors(dy, flat, n, p, q, run, strip, planes, at, plane, panel, total):
    """The same for the gradients of these tiles: (A dy A^T)[i, j]. total (O,) += the sum of dy."""
    O, columns = dy.shape[3], 4 * run
    _strip(dy, flat, n, 4 * p, 4 * q, 4, columns, strip)
    for o in range(0, O, LANES):
        own = load(total, o)
        for e in range(o, 4 * columns * O, O):
            own = own + load(strip, e)
        store(total, o, own)
    for e in range(0, columns * O, LANES):
        output_gradient(strip, e, columns * O, strip, e, columns * O)
    for i in range(6):
        for t in range(run):
            for v in range(O // LANES):
                to = at + 6 * i * plane + v * panel + t * LANES
                for j in range(6):
                    prepare(planes, to + LANES + j * plane)
                output_gradient(strip, (i * columns + 4 * t) * O + v * LANES, O, planes, to, plane)


@helper
def _put_tile(planes, at, plane, panel, half, bias, add, every, y, y_shape, n, p, q):
    """A^T m A of one tile, with bias and add, to tile (p, q) of picture n; half is scratch for A^T m (4, 6, O)."""
    _, height, width, O = y_shape
    inside = min(4, width - 4 * q)
    for i in range(min(4, height - 4 * p)):
        pixel = (n * height + 4 * p + i) * width + 4 * q
        for o in range(0, inside * O, LANES):
            prepare(y, pixel * O + o)
    for j in range(6):
        for v in range(O // LANES):
            values = output_transform(planes, at + j * plane + v * panel, 6 * plane)
            for i in range(4):
                store(half, (6 * i + j) * O + v * LANES, values[i])
    for i in range(min(4, height - 4 * p)):
        pixel = (n * height + 4 * p + i) * width + 4 * q
        row, step = pixel // every * O, O if every == 1 else 0  # of add, and from one pixel to the next
        for o in range(0, O, LANES):
            values, own = output_transform(half, 6 * i * O + o, O), load(bias, o)
            for j in range(4):
                if j < inside:
                    store(y, (pixel + j) * O + o, values[j] + own + load(add, row + j * step + o))


def _block_tiles(tiles, channels, share=1):
    """Tiles in a block: as many as fit in cache, fewer if threads would go without; a multiple of ROWS."""
    fitting = min(SCRATCH_FLOATS // (36 * channels), MOST_TILES, -(-tiles // share))
    return max(fitting // ROWS * ROWS, ROWS)


def convolve(x, panels, bias, add, y, pad):
    """y = the convolution of x with the weights in panels (V, 9 K, LANES), + bias + add; pad: zeros above, left.

    bias (O,), add (1, O) or (N, O) or (pixels, O).
    """
    (N, height, width, O), (V, K9, _) = y.shape, panels.shape
    K = K9 // 9
    U = empty((36, V, K, LANES))
    transform_weights(panels.reshape(V, 3, 3, K, LANES), U)
    (down, across), threads = tiles_of((height, width)), get_num_threads()
    tiles = _block_tiles(N * down * across, max(K, O), threads)
    planes = empty((threads, 37 * ((tiles + 1) * max(K, O) + SKEW)))
    strips = empty((threads, max(6 * (4 * min(across, tiles) + 2) * K, 24 * O)))
    _convolve(x, U.ravel(), bias, add.ravel(), y, (down, across), pad, tiles, planes, strips)


@kernel
def _convolve(x, U, bias, add, y, size, pad, tiles, planes, strips):
    """Of 37 planes in scratch, the transformed input takes 1 to 36; product i goes to plane i, free by then."""
    (N, _, _, K), (_, height, width, O), (down, across) = x.shape, y.shape, size
    total, flat, flat_y, V = N * down * across, x.ravel(), y.ravel(), O // LANES
    every = N * height * width // (len(add) // O)  # pixels that share a row of add
    panel, plane = (tiles + 1) * LANES, planes.shape[1] // 37
    for block in prange((total + tiles - 1) // tiles):
        first = np.int64(block) * tiles
        count = min(tiles, total - first)
        scratch, strip = planes[get_thread_id()], strips[get_thread_id()]
        t = 0
        while t < count:
            n, position = divmod(first + t, down * across)
            p, q = divmod(position, across)
            run = min(across - q, count - t)
            _see(x, flat, n, p, q, run, pad, strip, scratch, plane + t * LANES, plane, panel)
            t += run
        tall = (count + ROWS - 1) // ROWS * ROWS
        for i in range(36):
            seen, weights, out = (i + 1) * plane, i * V * K * LANES, i * plane
            A, B = (scratch, seen, LANES, panel), (U, weights, LANES, K * LANES)
            product(A, B, (scratch, out, LANES, panel), tall, V, K, True)
        for t in range(count):
            n, position = divmod(first + t, down * across)
            p, q = divmod(position, across)
            _put_tile(scratch, t * LANES, plane, panel, strip, bias, add, every, flat_y, y.shape, n, p, q)


def weight_gradient(dy, x, w_shape, pad):
    """dw (O, 3, 3, C) and dbias (O,).

    The sum over tiles is long and its result large, so threads do not each keep one: all tiles that fit in the
    last-level cache are transformed, then every thread takes some of the 36 positions, and so on.
    """
    (N, height, width, O), C = dy.shape, x.shape[3]
    size = tiles_of((height, width))
    total, threads = N * size[0] * size[1], get_num_threads()
    tiles = min(total, max(round_up(SHARED_FLOATS // (36 * (C + O)), K_CHUNK), K_CHUNK))
    seen, errors = (empty((36 * (channels // LANES), tiles + 1, LANES)) for channels in (C, O))
    strips = empty((threads, 6 * (4 * RUN + 2) * max(C, O)))
    dU, dw, dbias = empty((36, C // LANES, O, LANES)), empty(w_shape), np.zeros(O)
    for first in range(0, total, tiles):
        count = min(tiles, total - first)
        sums = np.zeros((-(-count // RUN), O), np.float32)
        _transform_block(dy, x, size, pad, first, count, seen, errors, strips, sums)
        _multiply_block(seen, errors, count, dU, first == 0)
        dbias += sums.sum(0)
    _transform_gradient(dU, dw.ravel())
    return dw, dbias.astype(np.float32)


@kernel
def _transform_block(dy, x, size, pad, first, count, seen, errors, strips, sums):
    """Of tiles first, first + 1, ...: seen[(i, j, vector of C), tile] and errors[(i, j, vector of O), tile].

    sums[r] is the sum of dy over RUN tiles.
    """
    down, across = size
    panel = seen.shape[1] * LANES
    flat, flat_dy, flat_seen, flat_errors = x.ravel(), dy.ravel(), seen.ravel(), errors.ravel()
    plane_in, plane_out = len(flat_seen) // 36, len(flat_errors) // 36
    for r in prange((count + RUN - 1) // RUN):
        strip, t, stop = strips[get_thread_id()], np.int64(r) * RUN, min(np.int64(r) * RUN + RUN, count)
        while t < stop:
            n, position = divmod(first + t, down * across)
            p, q = divmod(position, across)
            run = min(across - q, stop - t)
            _see(x, flat, n, p, q, run, pad, strip, flat_seen, t * LANES, plane_in, panel)
            _see_errors(dy, flat_dy, n, p, q, run, strip, flat_errors, t * LANES, plane_out, panel, sums[r])
            t += run


@kernel
def _multiply_block(seen, errors, count, dU, fresh):
    """dU[(i, j), c, o] = or += the sum over tiles of errors[(i, j), o, tile] seen[(i, j), c, tile]."""
    _, V, O, _ = dU.shape
    panels, panel = O // LANES, seen.shape[1] * LANES
    errors, seen, dU = errors.ravel(), seen.ravel(), dU.ravel()
    for task in prange(36 * panels):
        i, o = divmod(np.int64(task), panels)
        A, B = (errors, task * panel, LANES, panel), (seen, i * V * panel, LANES, panel)
        C = (dU, (i * V * O + o * LANES) * LANES, LANES, O * LANES)
        product_transposed(A, B, C, LANES, V, count, fresh)


@kernel
def _transform_gradient(dU, dw):
    """dw (O, 3, 3, C) = G^T dU G."""
    _, V, O, _ = dU.shape
    flat, plane, C = dU.ravel(), V * O * LANES, V * LANES
    for o in prange(O):
        half = np.empty(18 * LANES, np.float32)  # G^T dU, 3 x 6
        for v in range(V):
            at = (v * O + np.int64(o)) * LANES
            for j in range(6):
                kernel_gradient(flat, j * plane + at, 6 * plane, half, j * LANES, 6 * LANES)
            for i in range(3):
                kernel_gradient(half, 6 * i * LANES, LANES, dw, (np.int64(o) * 9 + 3 * i) * C + v * LANES, C)
