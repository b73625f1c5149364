"""The weight gradient of a 3x3 convolution with stride 1 by Winograd's F(4x4, 3x3) (winograd.cu).

Lavin & Gray 2015 (arXiv:1509.09308): 36 multiplications for a tile of 4 x 4 pixels instead of 144. cpu/winograd.py does
so in the forward pass and the input gradient too.
"""

from math import prod

from .launch import ceil_div, launch
from .memory import empty
from .product import DEPTH, THREADS, shared, sum_splits

SPLIT_TILES = 8 * DEPTH  # tiles in one float32 sum, since the transforms magnify its rounding error
SCRATCH = 2**27  # floats of transformed tiles and their products in memory at a time: 512 MB
MIN_TILES = 32  # below that the weight transform costs more than the products save


def supports(w_shape, stride, dy_shape):
    """Whether a weight gradient can use Winograd, and has enough tiles."""
    (_, KH, KW, _), (N, *size, _) = w_shape, dy_shape
    return (KH, KW, stride) == (3, 3, 1) and min(size) >= 4 and N * prod(_tiles(size)) >= MIN_TILES


def weight_gradient(dy, x, w_shape, pad):
    """dw (O, 3, 3, C), in passes over as many tiles as fit in SCRATCH."""
    (N, P, Q, O), (_, H, W, C) = dy.shape, x.shape
    down, across = _tiles((P, Q))
    dw, tiles = empty(w_shape), N * down * across
    pass_tiles = _tiles_per_pass(tiles, O, C)
    for first in range(0, tiles, pass_tiles):
        quads = ceil_div(min(pass_tiles, tiles - first), 4)
        dM, V = empty((36, quads, O, 4)), empty((36, quads, C, 4))
        grid = down, across, first, quads
        launch("winograd", "transform_dy", ceil_div(4 * quads * O, 256), 256, dy, dM, N, P, Q, O, *grid)
        launch("winograd", "transform_x", ceil_div(4 * quads * C, 256), 256, x, V, N, H, W, C, *grid, pad[0], pad[2])
        _multiply(dM, V, dw, accumulate=first > 0)
        del dM, V  # so that the next pass can reuse their memory
    return dw


def _tiles(size):
    """Rows and columns of tiles in an output of that size (P, Q)."""
    return ceil_div(size[0], 4), ceil_div(size[1], 4)


def _tiles_per_pass(tiles, O, C):
    """Tiles in a pass, a multiple of SPLIT_TILES; passes of about equal size fit in SCRATCH with their products."""
    most = max((SCRATCH // 36 - O * C) // (SPLIT_TILES * (O + C) + O * C), 1)
    return ceil_div(tiles, ceil_div(tiles, most * SPLIT_TILES) * SPLIT_TILES) * SPLIT_TILES


def _multiply(dM, V, dw, accumulate):
    """dw = (or += if accumulate) the weight gradient of these tiles: 36 products, sums of splits, weight transform."""
    O, _, _, C = dw.shape
    quads, rows = dM.shape[1], 64 if O <= 64 else 128
    splits = ceil_div(4 * quads, SPLIT_TILES)
    parts, tiles = empty((splits, 36, O, C)), ceil_div(O, rows) * ceil_div(C, 128)
    launch(
        "winograd", f"multiply_{rows}x128", (tiles, splits, 36), THREADS, dM, V, parts,
        O, C, quads, SPLIT_TILES // DEPTH, shared=shared(rows),
    )  # fmt: skip
    dU = parts if splits == 1 else sum_splits(parts, None, None, empty((36, O, C)))
    launch("winograd", "transform_dw", ceil_div(O * C, 64), 64, dU, dw, O, C, accumulate)
