"""The weight gradient of a convolution 3x3 with stride 1 in fewer products: Winograd's F(4x4, 3x3).

Lavin & Gray 2015 (arXiv:1509.09308): 36 products for a tile of 4 x 4 pixels instead of 144. What the kernels do
stands in winograd.cu; cpu/winograd.py has the whole convolution in this way.
"""

from math import prod

from .launch import blocks_of, launch
from .memory import empty
from .product import DEPTH, THREADS, added, shared

PART = 8 * DEPTH  # tiles that a sum takes: the transforms magnify its rounding errors
SCRATCH = 2**27  # numbers that are stored at a time, transformed and multiplied: 512 MB
FEWEST = 32  # tiles for which the transforms of a whole dw are worth their while


def fits(w_shape, stride, dy_shape):
    """Whether a weight gradient can go this way, and has enough tiles."""
    (_, KH, KW, _), (N, *size, _) = w_shape, dy_shape
    return (KH, KW, stride) == (3, 3, 1) and min(size) >= 4 and N * prod(_tiles(size)) >= FEWEST


def weight_gradient(dy, x, w_shape, pad):
    """dw (O, 3, 3, C), as many tiles at a time as there is room for."""
    (N, P, Q, O), (_, H, W, C) = dy.shape, x.shape
    down, across = _tiles((P, Q))
    dw, tiles = empty(w_shape), N * down * across
    at_once = _at_once(tiles, O, C)
    for first in range(0, tiles, at_once):
        quads = blocks_of(min(at_once, tiles - first), 4)
        errors, seen = empty((36, quads, O, 4)), empty((36, quads, C, 4))
        where = down, across, first, quads
        launch("winograd", "see_errors", blocks_of(4 * quads * O, 256), 256, dy, errors, N, P, Q, O, *where)
        launch("winograd", "see", blocks_of(4 * quads * C, 256), 256, x, seen, N, H, W, C, *where, pad[0], pad[2])
        _multiply(errors, seen, dw, more=first > 0)
        del errors, seen  # before the next ones are made
    return dw


def _tiles(size):
    """Tiles down and across an output of that size (P, Q)."""
    return blocks_of(size[0], 4), blocks_of(size[1], 4)


def _at_once(tiles, O, C):
    """Tiles a turn: whole parts, in turns of about the same length, that find room beside the sum of all parts."""
    most = max((SCRATCH // 36 - O * C) // (PART * (O + C) + O * C), 1)
    return blocks_of(tiles, blocks_of(tiles, most * PART) * PART) * PART


def _multiply(errors, seen, dw, more):
    """Into dw: 36 products, added up from their parts and transformed back; more: beside what is there."""
    O, _, _, C = dw.shape
    quads, rows = errors.shape[1], 64 if O <= 64 else 128
    splits = blocks_of(4 * quads, PART)
    parts, tiles = empty((splits, 36, O, C)), blocks_of(O, rows) * blocks_of(C, 128)
    launch(
        "winograd", f"multiply_{rows}x128", (tiles, splits, 36), THREADS, errors, seen, parts, O, C, quads,
        PART // DEPTH, shared=shared(rows),
    )  # fmt: skip
    u = parts if splits == 1 else added(parts, None, None, empty((36, O, C)))
    launch("winograd", "transform_gradient", blocks_of(O * C, 64), 64, u, dw, O, C, more)
