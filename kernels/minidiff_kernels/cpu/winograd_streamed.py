"""Winograd's F(4x4, 3x3) where the weights outweigh the tiles: the tiles stay, the weights pass by.

winograd.py transforms all weights and lets blocks of tiles pass by. With few tiles the transformed tiles are the
smaller matrix; the transformed weights, four times the size of the weights, would be written to memory by one thread
and read by all for few products each. So here a thread takes a share of the output channels, and transforms the tiles
for itself; K_CHUNK input channels of the weights of a group of output channels at a time are transformed into scratch
that stays in L2, and multiplied with the tiles of a block. Threads share only what no one writes. float16 weights are
widened on the way, as in streamed.py. The sums are those of winograd.py, to the last bit.

Accelerates reference/winograd.py for few tiles.
"""

import numpy as np
from numba import get_num_threads, prange
from numba.np.ufunc.parallel import get_thread_id

from .jit import helper, kernel
from .memory import scratch
from .product import K_CHUNK, ROWS, product
from .simd import LANES, load, prefetch_read, round_up, store, transpose_to_panels
from .streamed import FEW, GROUP, groups_of
from .winograd import SKEW, store_tile, tile_grid, transform_block
from .winograd_transforms import weight_transform

MAX_TILES = 64  # in a block: their products in a group take 450 KB of L2, as much as K_CHUNK channels' weights
U_PLANE = GROUP * K_CHUNK * LANES + SKEW  # floats of the transformed weights at one position
SQUARE = LANES * LANES


def supports(w_shape, stride, N, size) -> bool:
    """Whether a convolution of N images to that output size (P, Q) can use this, and is faster for it.

    Channels fill whole vectors. From four tiles on, in register tiles of ROWS, the products save more than the
    transforms cost. A second block of tiles transforms the weights again, so there must be more of them.
    """
    (O, KH, KW, C), (down, across) = w_shape, tile_grid(size)
    whole = C % LANES == 0 and O % LANES == 0 and C >= 32
    few = 4 <= N * down * across <= max(O // FEW, min(O // 2, MAX_TILES))
    return (KH, KW, stride) == (3, 3, 1) and whole and min(size) >= 4 and few


def convolve(x, w, bias, add, y, pad, flipped=False):
    """y = conv2d of x with w (O, 3, 3, C), + bias + add, as winograd.convolve; if flipped, w (C, 3, 3, O)."""
    (N, height, width, O), C = y.shape, x.shape[3]
    down, across = tile_grid((height, width))
    rows = min(round_up(N * down * across, ROWS), MAX_TILES)
    strip, planes = 6 * (4 * min(across, rows) + 2) * C, 36 * (C // LANES) * (rows + 1) * LANES
    weights, M = [9 * SQUARE, 18 * LANES, 36 * U_PLANE], 36 * ((rows + 1) * GROUP * LANES + SKEW)
    offsets, memory = scratch([strip, planes, *weights, M, 24 * GROUP * LANES])
    groups = groups_of(O)
    terms, sizes = (bias, add.reshape(-1)), (down, across, rows, groups, min(groups, get_num_threads()))
    _convolve(x, w.reshape(-1), flipped, terms, y, sizes, pad, offsets, memory)


@helper
def _gather_taps(w, flipped, v, k, sizes, a, taps):
    """taps[tap, i, lane] of input channels k + i and output channels v LANES + lane; sizes: O, C.

    The next K_CHUNK input channels are prefetched.
    """
    O, C = sizes
    for tap in range(9):
        to = taps + tap * SQUARE
        if flipped:
            for i in range(LANES):
                source = ((k + i) * 9 + 8 - tap) * O + v * LANES
                prefetch_read(w, source + K_CHUNK * 9 * O)
                store(a, to + i * LANES, load(w, source))
        else:
            source = (v * LANES * 9 + tap) * C + k
            for o in range(LANES):
                prefetch_read(w, source + o * 9 * C + K_CHUNK)
            transpose_to_panels(w, source, 9 * C, LANES, LANES, a, to, SQUARE)


@helper
def _transform_weights(w, flipped, start, channels, panels, sizes, a, parts):
    """U = G g G^T of `channels` input channels and `panels` panels of output channels, at parts = (taps, Gg, U) in a.

    start: the first panel and the first input channel; sizes: O, C.
    """
    (first, k0), (taps, Gg, U) = start, parts
    for v in range(panels):
        for k in range(0, channels, LANES):
            _gather_taps(w, flipped, first + v, k0 + k, sizes, a, taps)
            for i in range(LANES):
                to = U + (v * channels + k + i) * LANES
                for j in range(3):
                    weight_transform(a, taps + j * SQUARE + i * LANES, 3 * SQUARE, a, Gg + j * LANES, 3 * LANES)
                for j in range(6):
                    weight_transform(a, Gg + 3 * j * LANES, LANES, a, to + 6 * j * U_PLANE, U_PLANE)


@kernel
def _convolve(x, w, flipped, terms, y, sizes, pad, offsets, memory):
    C, O, (down, across, rows, groups, shares), (bias, add) = x.shape[3], y.shape[3], sizes, terms
    _, planes, taps, Gg, U, M, AtM = offsets
    tiles, V, flat, flat_y = len(x) * down * across, O // LANES, x.ravel(), y.ravel()
    blocks, pixels_per_add, plane = (tiles + rows - 1) // rows, len(flat_y) // len(add), (rows + 1) * LANES
    m_panel, m_plane = (rows + 1) * LANES, (rows + 1) * GROUP * LANES + SKEW
    for task in prange(shares * blocks):
        share, block = divmod(np.int64(task), blocks)
        a, first = memory[get_thread_id()], block * rows
        count = min(rows, tiles - first)
        transform_block(x, flat, (first, count), (down, across), pad, a, a, planes, plane, 36 * plane)
        for group in range(groups * share // shares, groups * (share + 1) // shares):
            v = V * group // groups
            panels = V * (group + 1) // groups - v
            for k in range(0, C, K_CHUNK):
                channels = min(K_CHUNK, C - k)
                _transform_weights(w, flipped, (v, k), channels, panels, (O, C), a, (taps, Gg, U))
                for i in range(36):
                    d = (a, planes + (k // LANES * 36 + i) * plane, LANES, 36 * plane)
                    g, m = (a, U + i * U_PLANE, LANES, channels * LANES), (a, M + i * m_plane, LANES, m_panel)
                    product(d, g, m, (count + ROWS - 1) // ROWS * ROWS, panels, channels, k == 0)
            for t in range(count):
                n, position = divmod(first + t, down * across)
                p, q = divmod(position, across)
                m, outputs = (a, M + t * LANES, m_plane, m_panel), (v * LANES, panels)
                store_tile(m, (a, AtM), outputs, (bias, add, pixels_per_add), flat_y, y.shape, (n, p, q))
