"""3x3 convolution with stride 2 by Winograd's method: 25 multiplications for 2 x 2 outputs instead of 36.

In one dimension, two outputs depend on five inputs d, of which the odd ones meet the middle tap g1 only. The even ones
and the outer taps g0, g2 are a convolution of two taps with stride 1, two outputs of which take three multiplications:

    y0 = (d0 - d2) g0 + d1 g1 + d2 (g0 + g2)
    y1 =                        d2 (g0 + g2) + d3 g1 + (d4 - d2) g2

So V = (d0 - d2, d1, d2, d3, d4 - d2), U = (g0, g1, g0 + g2, g1, g2), and each output is the sum of three of the five
products. In two dimensions these transforms apply down and across, as in winograd.py: at each of the 5 x 5 positions
the sum over channels is a matrix product of a plane (tiles, channels). Planes with the same contents are stored once:
the tuples below say which.

In the input gradient, pixels of x that meet the middle tap alternate with pixels that meet both outer taps. So four of
them follow from three pixels e of dy, by five multiplications with the same U of the flipped kernel:

    even padding   dx0 = (e0 - e1) g2 + e1 (g0 + g2)   dx1 = e1 g1   dx2 = e1 (g0 + g2) + (e2 - e1) g0   dx3 = e2 g1
    odd padding    the same in the order dx1, dx0, dx3, dx2, with e0 g1 and e1 g1

Accelerates reference/winograd.py for stride 2.
"""

import numpy as np
from numba import get_num_threads, prange
from numba.np.ufunc.parallel import get_thread_id

from .jit import helper, kernel
from .memory import empty, scratch
from .product import ROWS, product
from .simd import LANES, clear, load, store
from .winograd import BLOCK, RUN, SKEW, add_chunks, block_tiles, divided, multiply_block
from .winograd_strided_transforms import (
    store_gradients,
    store_outputs,
    sum_positions,
    transform_dy,
    transform_gradients,
    transform_inputs,
)

# The plane of each of the five positions, down or across:
WEIGHT = (0, 1, 2, 1, 3)  # of the 4 x 4 transformed weights
OUTPUT = (0, 0, 1, 2, 2)  # of the 3 x 3 sums of products; also of the transformed dy of a weight gradient
GRADIENT = (0, 1, 1, 2, 3), (0, 2, 1, 1, 3)  # of the 4 x 4 of dy in an input gradient, for even and odd padding


def supports(w_shape, stride, N, size) -> bool:
    """Whether a convolution of N images to that output size (P, Q) can use this, and is faster for it.

    Below 32 tiles the transform of the weights costs more than the products save.
    """
    (O, KH, KW, C), (down, across) = w_shape, tile_grid(size)
    whole = C % LANES == 0 and O % LANES == 0 and min(C, O) >= 16
    return (KH, KW, stride) == (3, 3, 2) and whole and min(size) >= 2 and N * down * across >= 32


def tile_grid(size):
    """Rows and columns of 2 x 2 tiles in an output of that size (P, Q)."""
    return -(-size[0] // 2), -(-size[1] // 2)


@kernel
def _transform_weights(panels, U):
    """U[i, j] of panels (V, 3, 3, K, LANES): (g0, g1, g0 + g2, g2) down and across, (16, V K LANES + SKEW)."""
    V, K, plane = panels.shape[0], panels.shape[3], U.shape[1]
    flat, out, step = panels.ravel(), U.ravel(), K * LANES
    for v in prange(V):
        for k in range(K):
            here, to = (v * 9 * K + k) * LANES, (v * K + k) * LANES
            for i in range(4):
                row = here + (0, 3, 0, 6)[i] * step
                g0, g1, g2 = load(flat, row), load(flat, row + step), load(flat, row + 2 * step)
                if i == 2:  # the sum of the first and the last row
                    g0, g1 = g0 + load(flat, row + 6 * step), g1 + load(flat, row + 7 * step)
                    g2 = g2 + load(flat, row + 8 * step)
                store(out, to + 4 * i * plane, g0)
                store(out, to + (4 * i + 1) * plane, g1)
                store(out, to + (4 * i + 2) * plane, g0 + g2)
                store(out, to + (4 * i + 3) * plane, g2)


def _transformed(panels):
    """U of packed weights (V, 9 K, LANES)."""
    V, K9, _ = panels.shape
    U = empty((16, V * K9 // 9 * LANES + SKEW))
    _transform_weights(panels.reshape(V, 3, 3, K9 // 9, LANES), U)
    return U


def convolve(x, panels, bias, add, y, pad):
    """y = conv2d of x with packed weights (V, 9 K, LANES), + bias + add, as winograd.convolve."""
    (N, height, width, O), K = y.shape, x.shape[3]
    (down, across), threads = tile_grid((height, width)), get_num_threads()
    tiles = block_tiles(N * down * across, threads)
    planes, sums = (empty((threads, count * ((tiles + 1) * width + SKEW))) for count, width in ((25, K), (9, O)))
    strips = empty((threads, 5 * (4 * min(across, tiles) + 1) * K))
    _convolve(x, _transformed(panels), (bias, add.ravel()), y, (down, across), pad, tiles, (planes, sums, strips))


@kernel
def _convolve(x, U, terms, y, size, pad, tiles, scratch):
    (N, _, _, K), (_, height, width, O), (down, across), (bias, add) = x.shape, y.shape, size, terms
    total, flat, flat_y, weights, V = N * down * across, x.ravel(), y.ravel(), U.ravel(), O // LANES
    pixels_per_add = N * height * width // (len(add) // O)  # pixels that share a row of add
    panel, plane, sum_plane = (tiles + 1) * LANES, scratch[0].shape[1] // 25, scratch[1].shape[1] // 9
    for block in prange((total + tiles - 1) // tiles):
        first = np.int64(block) * tiles
        count = min(tiles, total - first)
        planes, sums, strip = (
            scratch[0][get_thread_id()], scratch[1][get_thread_id()], scratch[2][get_thread_id()],
        )  # fmt: skip
        t = 0
        while t < count:
            n, position = divmod(first + t, down * across)
            p, q = divmod(position, across)
            run = min(across - q, count - t)
            transform_inputs(x, flat, n, p, q, run, pad, strip, planes, t * LANES, plane, panel)
            t += run
        M = (count + ROWS - 1) // ROWS * ROWS
        for i in range(5):
            for j in range(5):
                A = (planes, (5 * i + j) * plane, LANES, panel)
                B = (weights, (4 * WEIGHT[i] + WEIGHT[j]) * U.shape[1], LANES, K * LANES)
                C = (sums, (3 * OUTPUT[i] + OUTPUT[j]) * sum_plane, LANES, panel)
                product(A, B, C, M, V, K, i in (0, 2, 3) and j in (0, 2, 3))  # the first of a plane's products
        for t in range(count):
            n, position = divmod(first + t, down * across)
            p, q = divmod(position, across)
            store_outputs(sums, t * LANES, sum_plane, panel, bias, add, pixels_per_add, flat_y, y.shape, n, p, q)


def input_gradient(dy, panels, dx, pad):
    """dx of dy with the packed weights (V, 9 O, LANES) of the flipped kernel; pad = (top, left)."""
    (N, H, W, C), O = dx.shape, dy.shape[3]
    down, across = (-(-(size + before // 2 * 2) // 4) for size, before in ((H, pad[0]), (W, pad[1])))
    threads = get_num_threads()
    tiles = block_tiles(N * down * across, threads)
    planes, sums = (empty((threads, count * ((tiles + 1) * width + SKEW))) for count, width in ((16, O), (25, C)))
    strips = empty((threads, 4 * (2 * min(across, tiles) + 1) * O))
    _input_gradient(dy, _transformed(panels), dx, (down, across), pad, tiles, (planes, sums, strips))
    return dx


@kernel
def _input_gradient(dy, U, dx, size, pad, tiles, scratch):
    (N, _, _, O), C, (down, across) = dy.shape, dx.shape[3], size
    total, flat, flat_dx, weights, V = N * down * across, dy.ravel(), dx.ravel(), U.ravel(), C // LANES
    panel, plane, sum_plane = (tiles + 1) * LANES, scratch[0].shape[1] // 16, scratch[1].shape[1] // 25
    for block in prange((total + tiles - 1) // tiles):
        first = np.int64(block) * tiles
        count = min(tiles, total - first)
        planes, sums, strip = (
            scratch[0][get_thread_id()], scratch[1][get_thread_id()], scratch[2][get_thread_id()],
        )  # fmt: skip
        t = 0
        while t < count:
            n, position = divmod(first + t, down * across)
            p, q = divmod(position, across)
            run = min(across - q, count - t)
            transform_gradients(dy, flat, n, p, q, run, pad, strip, planes, t * LANES, plane, panel)
            t += run
        M = (count + ROWS - 1) // ROWS * ROWS
        for i in range(5):
            for j in range(5):
                A = (planes, (4 * _gradient_plane(i, pad[0]) + _gradient_plane(j, pad[1])) * plane, LANES, panel)
                B = (weights, (4 * WEIGHT[i] + WEIGHT[j]) * U.shape[1], LANES, O * LANES)
                product(A, B, (sums, (5 * i + j) * sum_plane, LANES, panel), M, V, O, True)
        for t in range(count):
            n, position = divmod(first + t, down * across)
            p, q = divmod(position, across)
            store_gradients(sums, t * LANES, sum_plane, panel, flat_dx, dx.shape, n, p, q, pad)


@helper
def _gradient_plane(position, pad):
    """The plane of dy at a position, down or across."""
    return GRADIENT[pad % 2][position]


def weight_gradient(dy, x, w_shape, pad):
    """dw (O, 3, 3, C) and dbias (O,), by chunks of tiles and shares of output channels as winograd.weight_gradient."""
    (N, height, width, O), C = dy.shape, x.shape[3]
    size = tile_grid((height, width))
    tiles = N * size[0] * size[1]
    chunks, shares = divided(tiles, 25 * C * O, O)
    rows, strip = min(BLOCK, tiles), max(5 * (4 * RUN + 1) * C, 3 * (2 * RUN + 1) * O)
    offsets, memory = scratch([strip, O, *((rows + 1) * width for width in (25 * C, 9 * O))])
    dU, dw, dbias = empty((chunks, 25, C // LANES, O, LANES)), empty(w_shape), np.zeros((chunks, O))
    _sum_chunks(dy, x, size, pad, shares, rows, dU, dbias, offsets, memory)
    if chunks > 1:
        add_chunks(dU)
    _transform_gradient(dU[0], dw.ravel())
    return dw, dbias.sum(0).astype(np.float32)


@kernel
def _sum_chunks(dy, x, size, pad, shares, rows, dU, dbias, offsets, memory):
    """dU[chunk] (25, C / LANES, O, LANES) and dbias[chunk] (O,), the sums over the tiles of each chunk."""
    (down, across), (chunks, _, V, O, _), (_, total, x_planes, dy_planes) = size, dU.shape, offsets
    tiles, panel, flat_x, flat_dy = len(dy) * down * across, (rows + 1) * LANES, x.ravel(), dy.ravel()
    blocks, x_plane, dy_plane = (tiles + rows - 1) // rows, V * panel, O // LANES * panel
    positions = np.array([3 * i + j for i in OUTPUT for j in OUTPUT])
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
                transform_dy(dy, flat_dy, n, p, q, run, a, a, to_dy, dy_plane, panel, a[total : total + O])
                if share == 0:
                    for o in range(O):
                        dbias[chunk, o] += a[total + o]
                t += run
            planes, part = (x_planes, dy_planes, panel), (share, shares)
            multiply_block(a, planes, positions, count, sums, part, block == start)


@kernel
def _transform_gradient(dU, dw):
    """dw (O, 3, 3, C) = G^T dU G."""
    _, V, O, _ = dU.shape
    flat, plane, C = dU.ravel(), V * O * LANES, V * LANES
    for o in prange(O):
        rows = np.empty(15 * LANES, np.float32)  # 3 x 5
        for v in range(V):
            at, to = (v * O + np.int64(o)) * LANES, np.int64(o) * 9 * C + v * LANES
            for j in range(5):
                g0, g1, g2 = sum_positions(flat, at + j * plane, 5 * plane)
                store(rows, j * LANES, g0)
                store(rows, (5 + j) * LANES, g1)
                store(rows, (10 + j) * LANES, g2)
            for i in range(3):
                g0, g1, g2 = sum_positions(rows, 5 * i * LANES, LANES)
                store(dw, to + 3 * i * C, g0)
                store(dw, to + (3 * i + 1) * C, g1)
                store(dw, to + (3 * i + 2) * C, g2)
