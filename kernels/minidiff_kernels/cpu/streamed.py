"""A product with weights that outweigh the rows: the rows stay, the weights pass by.

    y = x w^T + bias + add        x (rows, K)   w (O, K)   y (rows, O)

pointwise.py packs all weights into panels and lets blocks of rows pass by. With few rows the packed weights would be
written to memory and read back for few products each. So here a thread takes a group of output channels; K_CHUNK terms
of their weights at a time are packed into scratch that stays in L1, and multiplied with all rows of a block. float16
weights are widened on the way; no float32 copy of them is written to memory.

Accelerates reference/conv.py for few pixels.
"""

import numpy as np
from numba import get_num_threads, prange
from numba.np.ufunc.parallel import get_thread_id

from .jit import helper, kernel
from .memory import scratch
from .product import K_CHUNK, product
from .simd import LANES, load, prefetch_read, store, transpose_to_panels

FEW = 4  # times fewer rows than output channels: then the weights pass by
GROUP = 3  # panels of output channels at most: the width of a register tile
MAX_ROWS = 256  # in a block: their results in a group take 48 KB
LINE = 16  # floats of a cache line


def supports(w_shape, rows) -> bool:
    """Whether channels fill whole vectors, and the rows are few."""
    O, KH, KW, C = w_shape
    return C % LANES == 0 and O % LANES == 0 and FEW * rows <= O


def groups_of(O):
    """The number of groups of up to GROUP panels: a multiple of the threads, unless there are too few panels."""
    panels, threads = O // LANES, get_num_threads()
    return min(-(-panels // GROUP // threads) * threads, panels)


def multiply(x, w, bias, add, y):
    """y (rows, O) = x w^T + bias + add; x (rows rounded up to ROWS, K), add of y's shape or with fewer rows."""
    rows = min(len(x), MAX_ROWS)
    offsets, memory = scratch([GROUP * K_CHUNK * LANES, rows * GROUP * LANES])
    _multiply(x, w.reshape(-1), (bias, add.reshape(-1)), y, (groups_of(y.shape[1]), rows), offsets, memory)


@helper
def _pack(w, at, K, terms, panels, to, t):
    """Pack `terms` terms of `panels` panels of the weights w[at], and prefetch as many terms after them."""
    for v in range(panels):
        for o in range(LANES):
            row = at + (v * LANES + o) * K
            for k in range(row + K_CHUNK, row + 2 * K_CHUNK, LINE):
                prefetch_read(w, k)
        transpose_to_panels(w, at + v * LANES * K, K, LANES, terms, to, t + v * terms * LANES, 0)


@kernel
def _multiply(x, w, terms, y, sizes, offsets, memory):
    (pixels, O), (padded, K), (bias, add), (groups, rows), (packed, results) = y.shape, x.shape, terms, sizes, offsets
    V, blocks, pixels_per_add = O // LANES, (padded + rows - 1) // rows, pixels * O // len(add)
    x, y = x.ravel(), y.ravel()
    for task in prange(groups * blocks):
        group, block = divmod(np.int64(task), blocks)
        a, v, first = memory[get_thread_id()], V * group // groups, block * rows
        panels, count = V * (group + 1) // groups - v, min(rows, padded - first)
        width = panels * LANES
        for k in range(0, K, K_CHUNK):
            length = min(K_CHUNK, K - k)
            _pack(w, v * LANES * K + k, K, length, panels, a, packed)
            A, B, C = (x, first * K + k, K, LANES), (a, packed, LANES, length * LANES), (a, results, width, LANES)
            product(A, B, C, count, panels, length, k == 0)
        for r in range(first, min(first + count, pixels)):
            here, row = results + (r - first) * width, v * LANES
            for o in range(0, width, LANES):
                added = load(bias, row + o) + load(add, r // pixels_per_add * O + row + o)
                store(y, r * O + row + o, load(a, here + o) + added)
