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
from .memory import empty, scratch
from .product import K_CHUNK, ROWS, product, product_transposed
from .simd import LANES, clear, copy, load, prefetch_write, store
from .winograd_transforms import (
    input_transform,
    output_transform,
    output_transform_backward,
    weight_transform,
    weight_transform_backward,
)

BLOCK_TILES = 32  # enough that reading the weights, once per block, takes less time than the products
BLOCK = 2 * K_CHUNK  # tiles of a weight gradient that are transformed before they are multiplied
RUN = 8  # tiles that a weight gradient transforms at once
CHUNK_FLOATS = 2 * 1024 * 1024  # of the sums of all chunks of a weight gradient: 8 MB
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


def divided(tiles, sums, O):
    """How a weight gradient of so many sums (of floats) is divided: chunks of tiles, and shares of output channels.

    Chunks depend on shapes alone, since their sums are added; shares, which transform the same tiles, do not matter.
    """
    chunks = next(n for n in (8, 4, 2, 1) if n == 1 or (n * sums <= CHUNK_FLOATS and n * BLOCK <= tiles))
    return chunks, min(-(-get_num_threads() // chunks), O // LANES)


def weight_gradient(dy, x, w_shape, pad):
    """dw (O, 3, 3, C) and dbias (O,).

    A task sums a chunk of the tiles for a share of the output channels, in blocks of BLOCK tiles: all that it writes
    it alone reads, from its own caches, until the sums of the chunks are added.
    """
    (N, height, width, O), C = dy.shape, x.shape[3]
    size = tile_grid((height, width))
    tiles = N * size[0] * size[1]
    chunks, shares = divided(tiles, 36 * C * O, O)
    rows = min(BLOCK, tiles)
    offsets, memory = scratch([6 * (4 * RUN + 2) * max(C, O), O, *(36 * (rows + 1) * width for width in (C, O))])
    dU, dw, dbias = empty((chunks, 36, C // LANES, O, LANES)), empty(w_shape), np.zeros((chunks, O))
    _sum_chunks(dy, x, size, pad, shares, rows, dU, dbias, offsets, memory)
    if chunks > 1:
        add_chunks(dU)
    _transform_gradient(dU[0], dw.ravel())
    return dw, dbias.sum(0).astype(np.float32)


@kernel
def _sum_chunks(dy, x, size, pad, shares, rows, dU, dbias, offsets, memory):
    """dU[chunk] (36, C / LANES, O, LANES) and dbias[chunk] (O,), the sums over the tiles of each chunk."""
    (down, across), (chunks, _, V, O, _), (_, total, x_planes, dy_planes) = size, dU.shape, offsets
    tiles, panel, flat_x, flat_dy = len(dy) * down * across, (rows + 1) * LANES, x.ravel(), dy.ravel()
    blocks, x_plane, dy_plane, positions = (tiles + rows - 1) // rows, V * panel, O // LANES * panel, np.arange(36)
    for task in prange(chunks * shares):
        chunk, share = divmod(np.int64(task), shares)
        a, start, sums = memory[get_thread_id()], blocks * chunk // chunks, dU[chunk]
        for block in range(start, blocks * (chunk + 1) // chunks):
            first, t = block * rows, 0
            count = min(rows, tiles - first)
            while t < count:
                n, position = divmod(first + t, down * across)
                p, q = divmod(position, across)
                run = min(across - q, count - t, RUN)
                to_x, to_dy = x_planes + t * LANES, dy_planes + t * LANES
                transform_inputs(x, flat_x, n, p, q, run, pad, a, a, to_x, x_plane, panel)
                clear(a, total, O)
                _transform_dy(dy, flat_dy, n, p, q, run, a, a, to_dy, dy_plane, panel, a[total : total + O])
                if share == 0:
                    for o in range(O):
                        dbias[chunk, o] += a[total + o]
                t += run
            planes, part = (x_planes, dy_planes, panel), (share, shares)
            multiply_block(a, planes, positions, count, sums, part, block == start)


@helper
def multiply_block(a, planes, dy_plane, count, dU, part, overwrite):
    """dU[i, c, o] = (if overwrite) or += the sum over tiles of the planes dy_plane[i] of dy and i of x.

    planes: where those of x and of dy start in a, and the stride of their panels; part: one of how many shares of o.
    """
    (x0, dy0, panel), (share, shares), (positions, V, O, _), flat = planes, part, dU.shape, dU.ravel()
    panels = O // LANES
    for i in range(positions):
        for o in range(panels * share // shares, panels * (share + 1) // shares):
            A, B = (a, dy0 + (dy_plane[i] * panels + o) * panel, LANES, panel), (a, x0 + i * V * panel, LANES, panel)
            C = (flat, (i * V * O + o * LANES) * LANES, LANES, O * LANES)
            product_transposed(A, B, C, LANES, V, count, overwrite)


@kernel
def add_chunks(dU):
    """dU[0] += the other chunks of dU (chunks, positions, V, O, LANES)."""
    chunks, positions, V, O, _ = dU.shape
    flat, size = dU.ravel(), O * LANES
    for i in prange(positions * V):
        for at in range(np.int64(i) * size, (np.int64(i) + 1) * size, LANES):
            total = load(flat, at)
            for chunk in range(1, chunks):
                total = total + load(flat, at + chunk * positions * V * size)
            store(flat, at, total)


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
