"""3x3 convolution with stride 1 by Winograd's F(4x4, 3x3): 36 multiplications for 16 outputs instead of 144.

Lavin & Gray 2015 (arXiv:1509.09308, section 4). The output is cut into tiles of 4 x 4; each depends on an input tile d
of 6 x 6, which overlaps its neighbours by 2. With the kernel g and the elementwise product *,

    forward           y  = A^T [ (G g G^T) * (B^T d B) ] A                        summed over input channels
    input gradient    the same of dy, with the flipped kernel
    weight gradient   dg = G^T [ sum over tiles of (A dy A^T) * (B^T d B) ] G

In the transformed domain the 6 x 6 positions are independent: at each, the sum over channels is a matrix product
(tiles, C) @ (C, O). The matrix (tiles, channels) of one position is called a plane here; it is packed in panels of
LANES channels. A block of tiles is transformed into scratch, multiplied and transformed back while it is in L2. The
transforms are in winograd_transforms.py; reference/winograd.py derives their matrices.
"""

import numpy as np
from numba import get_num_threads, prange
from numba.np.ufunc.parallel import get_thread_id

from .jit import helper, kernel
from .memory import empty
from .product import K_CHUNK, ROWS, product, product_transposed
from .simd import LANES, clear, copy, load, prefetch_write, round_up, store
from .winograd_transforms import (
    input_transform,
    output_transform,
    output_transform_backward,
    weight_transform,
    weight_transform_backward,
)

BLOCK_TILES = 32  # enough that reading the weights, once per block, takes less time than the products
RUN = 8  # tiles in one task of the transforms of a weight gradient
SHARED_FLOATS = 1024 * 1024  # transformed tiles of a weight gradient, shared by threads: 4 MB of last-level cache
SKEW = 5 * 16  # extra floats between planes, which keep the 36 out of the same sets of L1


def supports(w_shape, stride, N, size) -> bool:
    """Whether a convolution of N images to that output size (P, Q) can use Winograd, and is faster for it.

    Channels fill whole vectors. Below 32 channels the transforms cost more than the products save; below 8 tiles, the
    transform of the weights alone does.
    """
    (O, KH, KW, C), (down, across) = w_shape, tile_grid(size)
    whole = C % LANES == 0 and O % LANES == 0 and min(C, O) >= 32
    return (KH, KW, stride) == (3, 3, 1) and whole and min(size) >= 4 and N * down * across >= 8


def tile_grid(size):
    """Rows and columns of tiles in an output of that size (P, Q)."""
    return -(-size[0] // 4), -(-size[1] // 4)


@kernel
def transform_weights(panels, U):
    """U[i, j] = (G g G^T)[i, j] of panels (V, 3, 3, K, LANES) -> (36, V K LANES + SKEW)."""
    V, K, plane = panels.shape[0], panels.shape[3], U.shape[1]
    flat, out = panels.ravel(), U.ravel()
    for v in prange(V):
        Gg = np.empty(18 * LANES, np.float32)  # 6 x 3
        for k in range(K):
            here = (v * 9 * K + k) * LANES
            for j in range(3):
                weight_transform(flat, here + j * K * LANES, 3 * K * LANES, Gg, j * LANES, 3 * LANES)
            for i in range(6):
                weight_transform(Gg, 3 * i * LANES, LANES, out, 6 * i * plane + (v * K + k) * LANES, plane)


@helper
def copy_strip(x, flat, n, top, left, rows, columns, strip):
    """Copy rows x columns pixels of image n from (top, left) on to strip, with zeros outside the image."""
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
def transform_inputs(x, flat, n, p, q, run, pad, strip, planes, at, plane, panel):
    """B^T d B of the input tiles (p, q) ... (p, q + run - 1) of image n, into planes[at:].

    Element (i, j) goes to plane 6 i + j, which consists of panels (channels / LANES, tiles, LANES). plane, panel: their
    strides. The transform down the columns is done for the whole strip, since neighbouring tiles share two columns.
    """
    C, columns = x.shape[3], 4 * run + 2
    copy_strip(x, flat, n, 4 * p - pad[0], 4 * q - pad[1], 6, columns, strip)
    for e in range(0, columns * C, LANES):
        input_transform(strip, e, columns * C, strip, e, columns * C)
    for i in range(6):
        for t in range(run):
            for v in range(C // LANES):
                to = at + 6 * i * plane + v * panel + t * LANES
                for j in range(6):
                    prefetch_write(planes, to + LANES + j * plane)
                input_transform(strip, (i * columns + 4 * t) * C + v * LANES, C, planes, to, plane)


@helper
def transform_block(x, flat, tiles, size, pad, strip, planes, at, plane, panel):
    """transform_inputs of tiles (first, count), of the grid (down, across) of every image."""
    (first, count), (down, across), t = tiles, size, 0
    while t < count:
        n, position = divmod(first + t, down * across)
        p, q = divmod(position, across)
        run = min(across - q, count - t)
        transform_inputs(x, flat, n, p, q, run, pad, strip, planes, at + t * LANES, plane, panel)
        t += run


@helper
def _transform_dy(dy, flat, n, p, q, run, strip, planes, at, plane, panel, dbias):
    """A dy A^T of the output tiles (p, q) ... (p, q + run - 1), into planes[at:]; dbias (O,) += the sum of dy."""
    O, columns = dy.shape[3], 4 * run
    copy_strip(dy, flat, n, 4 * p, 4 * q, 4, columns, strip)
    for o in range(0, O, LANES):
        total = load(dbias, o)
        for e in range(o, 4 * columns * O, O):
            total = total + load(strip, e)
        store(dbias, o, total)
    for e in range(0, columns * O, LANES):
        output_transform_backward(strip, e, columns * O, strip, e, columns * O)
    for i in range(6):
        for t in range(run):
            for v in range(O // LANES):
                to = at + 6 * i * plane + v * panel + t * LANES
                for j in range(6):
                    prefetch_write(planes, to + LANES + j * plane)
                output_transform_backward(strip, (i * columns + 4 * t) * O + v * LANES, O, planes, to, plane)


@helper
def store_tile(M, AtM, channels, terms, y, y_shape, tile):
    """y = A^T M A + bias + add of an output tile (n, p, q) and channels (first, panels); terms: as in _convolve.

    M: an array, where it starts in it, and the strides of planes and panels. AtM: scratch for A^T M (4, 6, channels).
    """
    (a, at, plane, panel), (b, b0), (start, panels), (n, p, q) = M, AtM, channels, tile
    bias, add, pixels_per_add = terms
    _, height, width, O = y_shape
    inside, row = min(4, width - 4 * q), panels * LANES
    for i in range(min(4, height - 4 * p)):
        pixel = (n * height + 4 * p + i) * width + 4 * q
        for j in range(inside):
            for o in range(start, start + row, LANES):
                prefetch_write(y, (pixel + j) * O + o)
    for j in range(6):
        for v in range(panels):
            values = output_transform(a, at + j * plane + v * panel, 6 * plane)
            for i in range(4):
                store(b, b0 + (6 * i + j) * row + v * LANES, values[i])
    for i in range(min(4, height - 4 * p)):
        pixel = (n * height + 4 * p + i) * width + 4 * q
        add_row, step = pixel // pixels_per_add * O, O if pixels_per_add == 1 else 0  # of add, and its step per pixel
        for o in range(start, start + row, LANES):
            values, bias_o = output_transform(b, b0 + 6 * i * row + o - start, row), load(bias, o)
            for j in range(4):
                if j < inside:
                    store(y, (pixel + j) * O + o, values[j] + bias_o + load(add, add_row + j * step + o))


def block_tiles(tiles, threads):
    """Tiles in a block, a multiple of ROWS: up to BLOCK_TILES, and each thread gets a block."""
    return max(min(BLOCK_TILES, -(-tiles // threads)) // ROWS * ROWS, ROWS)


def convolve(x, panels, bias, add, y, pad):
    """y = conv2d of x with packed weights (V, 9 K, LANES), + bias + add; pad = (top, left).

    bias (O,), add (1, O) or (N, O) or (pixels, O).
    """
    (N, height, width, O), (V, K9, _) = y.shape, panels.shape
    K = K9 // 9
    U = empty((36, V * K * LANES + SKEW))
    transform_weights(panels.reshape(V, 3, 3, K, LANES), U)
    (down, across), threads = tile_grid((height, width)), get_num_threads()
    tiles = block_tiles(N * down * across, threads)
    planes = empty((threads, 37 * ((tiles + 1) * max(K, O) + SKEW)))
    strips = empty((threads, max(6 * (4 * min(across, tiles) + 2) * K, 24 * O)))
    _convolve(x, U, bias, add.ravel(), y, (down, across), pad, tiles, planes, strips)


@kernel
def _convolve(x, U, bias, add, y, size, pad, tiles, planes, strips):
    """Scratch has 37 planes: transformed inputs fill planes 1 ... 36; product i overwrites plane i, used by then."""
    (N, _, _, K), (_, height, width, O), (down, across) = x.shape, y.shape, size
    total, flat, flat_y, weights, V = N * down * across, x.ravel(), y.ravel(), U.ravel(), O // LANES
    pixels_per_add = N * height * width // (len(add) // O)  # pixels that share a row of add
    panel, plane = (tiles + 1) * LANES, planes.shape[1] // 37
    for block in prange((total + tiles - 1) // tiles):
        first = np.int64(block) * tiles
        count = min(tiles, total - first)
        scratch, strip = planes[get_thread_id()], strips[get_thread_id()]
        transform_block(x, flat, (first, count), (down, across), pad, strip, scratch, plane, plane, panel)
        rows = (count + ROWS - 1) // ROWS * ROWS
        for i in range(36):
            A, B = (scratch, (i + 1) * plane, LANES, panel), (weights, i * U.shape[1], LANES, K * LANES)
            product(A, B, (scratch, i * plane, LANES, panel), rows, V, K, True)
        for t in range(count):
            n, position = divmod(first + t, down * across)
            p, q = divmod(position, across)
            M, terms = (scratch, t * LANES, plane, panel), (bias, add, pixels_per_add)
            store_tile(M, (strip, 0), (0, V), terms, flat_y, y.shape, (n, p, q))


def weight_gradient(dy, x, w_shape, pad):
    """dw (O, 3, 3, C) and dbias (O,).

    dU, the sum over tiles, is too large for one copy per thread. So threads transform as many tiles as fit in the
    last-level cache, then split the 36 positions and the output channels of the products; and again for the next tiles.
    """
    (N, height, width, O), C = dy.shape, x.shape[3]
    size = tile_grid((height, width))
    total, threads = N * size[0] * size[1], get_num_threads()
    tiles = min(total, max(round_up(SHARED_FLOATS // (36 * (C + O)), K_CHUNK), K_CHUNK))
    x_planes, dy_planes = (empty((36 * (channels // LANES), tiles + 1, LANES)) for channels in (C, O))
    strips = empty((threads, 6 * (4 * RUN + 2) * max(C, O)))
    dU, dw, dbias = empty((36, C // LANES, O, LANES)), empty(w_shape), np.zeros(O)
    for first in range(0, total, tiles):
        count = min(tiles, total - first)
        sums = np.zeros((-(-count // RUN), O), np.float32)
        _transform_block(dy, x, size, pad, first, count, x_planes, dy_planes, strips, sums)
        multiply_block(x_planes, dy_planes, np.arange(36), count, dU, first == 0)
        dbias += sums.sum(0)
    _transform_gradient(dU, dw.ravel())
    return dw, dbias.astype(np.float32)


@kernel
def _transform_block(dy, x, size, pad, first, count, x_planes, dy_planes, strips, sums):
    """Transform `count` tiles from `first` on: x_planes (36 C / LANES, tiles, LANES), dy_planes likewise with O.

    sums[r] (O,) is the sum of dy over RUN tiles.
    """
    down, across = size
    panel = x_planes.shape[1] * LANES
    flat_x, flat_dy, x_planes, dy_planes = x.ravel(), dy.ravel(), x_planes.ravel(), dy_planes.ravel()
    x_plane, dy_plane = len(x_planes) // 36, len(dy_planes) // 36
    for r in prange((count + RUN - 1) // RUN):
        strip, t, stop = strips[get_thread_id()], np.int64(r) * RUN, min(np.int64(r) * RUN + RUN, count)
        while t < stop:
            n, position = divmod(first + t, down * across)
            p, q = divmod(position, across)
            run = min(across - q, stop - t)
            transform_inputs(x, flat_x, n, p, q, run, pad, strip, x_planes, t * LANES, x_plane, panel)
            _transform_dy(dy, flat_dy, n, p, q, run, strip, dy_planes, t * LANES, dy_plane, panel, sums[r])
            t += run


@kernel
def multiply_block(x_planes, dy_planes, dy_plane, count, dU, overwrite):
    """dU[i, c, o] = (if overwrite) or += the sum over tiles of dy_planes[dy_plane[i], o, tile] x_planes[i, c, tile]."""
    positions, V, O, _ = dU.shape
    panels, panel = O // LANES, x_planes.shape[1] * LANES
    dy_planes, x_planes, dU = dy_planes.ravel(), x_planes.ravel(), dU.ravel()
    for task in prange(positions * panels):
        i, o = divmod(np.int64(task), panels)
        A = (dy_planes, (dy_plane[i] * panels + o) * panel, LANES, panel)
        B = (x_planes, i * V * panel, LANES, panel)
        C = (dU, (i * V * O + o * LANES) * LANES, LANES, O * LANES)
        product_transposed(A, B, C, LANES, V, count, overwrite)


@kernel
def _transform_gradient(dU, dw):
    """dw (O, 3, 3, C) = G^T dU G."""
    _, V, O, _ = dU.shape
    flat, plane, C = dU.ravel(), V * O * LANES, V * LANES
    for o in prange(O):
        GtdU = np.empty(18 * LANES, np.float32)  # 3 x 6
        for v in range(V):
            at = (v * O + np.int64(o)) * LANES
            for j in range(6):
                weight_transform_backward(flat, j * plane + at, 6 * plane, GtdU, j * LANES, 6 * LANES)
            for i in range(3):
                weight_transform_backward(GtdU, 6 * i * LANES, LANES, dw, (np.int64(o) * 9 + 3 * i) * C + v * LANES, C)
