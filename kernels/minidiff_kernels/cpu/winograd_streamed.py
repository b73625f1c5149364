"""Winograd's F(4x4, 3x3) where the weights outweigh the tiles: the tiles stay, the weights pass by.

winograd.py transforms all weights and lets blocks of tiles pass by. With fewer tiles than output channels the
transformed tiles are the smaller matrix; the transformed weights, four times the size of the weights, would be written
to memory and read back for few products each. So here the tiles are transformed once, for all threads, and a thread
takes a group of output channels: K_CHUNK input channels of their weights at a time are transformed into scratch that
stays in L2, and multiplied with the tiles of a block. float16 weights are widened on the way, as in streamed.py. The
sums are those of winograd.py, to the last bit.

Accelerates reference/winograd.py for few tiles.
"""

import numpy as np
from numba import prange
from numba.np.ufunc.parallel import get_thread_id

from .jit import helper, kernel
from .memory import empty, scratch
from .product import K_CHUNK, ROWS, product
from .simd import LANES, prefetch_read, round_up, transpose_to_panels
from .streamed import FEW, GROUP, groups_of
from .winograd import SKEW, store_tile, tile_grid, transform_inputs
from .winograd_transforms import weight_transform

MAX_TILES = 64  # in a block: their products in a group take 450 KB of L2, as much as K_CHUNK channels' weights
U_PLANE = GROUP * K_CHUNK * LANES + SKEW  # floats of the transformed weights at one position
SQUARE = LANES * LANES


def supports(w_shape, stride, N, size) -> bool:
    """Whether a convolution of N images to that output size (P, Q) can use this, and is faster for it.

    Channels fill whole vectors. From four tiles on, in register tiles of ROWS, the products save more than the
    transforms cost.
    """
    (O, KH, KW, C), (down, across) = w_shape, tile_grid(size)
    whole = C % LANES == 0 and O % LANES == 0 and C >= 32
    return (KH, KW, stride) == (3, 3, 1) and whole and min(size) >= 4 and 4 <= N * down * across <= O // FEW


def convolve(x, w, bias, add, y, pad):
    """y = conv2d of x with w (O, 3, 3, C), + bias + add, as winograd.convolve."""
    (N, height, width, O), C = y.shape, x.shape[3]
    size = down, across = tile_grid((height, width))
    tiles = round_up(N * down * across, ROWS)
    planes = empty((C // LANES, 36, tiles + 1, LANES))
    _, strips = scratch([6 * (4 * across + 2) * C])
    _transform_tiles(x, size, pad, planes, strips)
    rows = min(tiles, MAX_TILES)
    parts = [9 * SQUARE, 18 * LANES, 36 * U_PLANE, 36 * ((rows + 1) * GROUP * LANES + SKEW), 24 * GROUP * LANES]
    offsets, memory = scratch(parts)
    _multiply(planes, w.reshape(-1), (bias, add.reshape(-1)), y, (*size, groups_of(O), rows), offsets, memory)


@kernel
def _transform_tiles(x, size, pad, planes, strips):
    """B^T d B of all tiles, into planes (C / LANES, 36, tiles, LANES)."""
    (down, across), flat, out = size, x.ravel(), planes.ravel()
    plane = planes.shape[2] * LANES
    for row in prange(len(x) * down):
        n, p = divmod(np.int64(row), down)
        at = np.int64(row) * across * LANES
        transform_inputs(x, flat, n, p, 0, across, pad, strips[get_thread_id()], out, at, plane, 36 * plane)


@helper
def _transform_weights(w, at, C, channels, panels, a, parts):
    """U = G g G^T of input channels w[at], ... and `panels` panels of output channels, at parts = (taps, Gg, U) in a.

    As many channels after them are prefetched.
    """
    taps, Gg, U = parts
    for v in range(panels):
        for k in range(0, channels, LANES):
            for tap in range(9):
                source = at + (v * LANES * 9 + tap) * C + k
                for o in range(LANES):
                    prefetch_read(w, source + o * 9 * C + K_CHUNK)
                transpose_to_panels(w, source, 9 * C, LANES, LANES, a, taps + tap * SQUARE, SQUARE)
            for i in range(LANES):
                to = U + (v * channels + k + i) * LANES
                for j in range(3):
                    weight_transform(a, taps + j * SQUARE + i * LANES, 3 * SQUARE, a, Gg + j * LANES, 3 * LANES)
                for j in range(6):
                    weight_transform(a, Gg + 3 * j * LANES, LANES, a, to + 6 * j * U_PLANE, U_PLANE)


@kernel
def _multiply(planes, w, terms, y, sizes, offsets, memory):
    (N, height, width, O), (down, across, groups, rows), (bias, add) = y.shape, sizes, terms
    taps, Gg, U, M, AtM = offsets
    C, tiles, V, plane = planes.shape[0] * LANES, N * down * across, O // LANES, planes.shape[2] * LANES
    blocks, pixels_per_add = (tiles + rows - 1) // rows, N * height * width // (len(add) // O)
    m_panel, m_plane = (rows + 1) * LANES, (rows + 1) * GROUP * LANES + SKEW
    flat, flat_y = planes.ravel(), y.ravel()
    for task in prange(groups * blocks):
        group, block = divmod(np.int64(task), blocks)
        a, v, first = memory[get_thread_id()], V * group // groups, block * rows
        panels, count = V * (group + 1) // groups - v, min(rows, tiles - first)
        for k in range(0, C, K_CHUNK):
            channels = min(K_CHUNK, C - k)
            _transform_weights(w, v * LANES * 9 * C + k, C, channels, panels, a, (taps, Gg, U))
            for i in range(36):
                d = (flat, (k // LANES * 36 + i) * plane + first * LANES, LANES, 36 * plane)
                g, m = (a, U + i * U_PLANE, LANES, channels * LANES), (a, M + i * m_plane, LANES, m_panel)
                product(d, g, m, (count + ROWS - 1) // ROWS * ROWS, panels, channels, k == 0)
        for t in range(count):
            n, position = divmod(first + t, down * across)
            p, q = divmod(position, across)
            m, outputs = (a, M + t * LANES, m_plane, m_panel), (v * LANES, panels)
            store_tile(m, (a, AtM), outputs, (bias, add, pixels_per_add), flat_y, y.shape, (n, p, q))
