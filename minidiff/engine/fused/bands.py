"""A convolution band by band, whose input is computed as it is needed and never stored whole.

In an autoencoder's last levels one array takes 134 or 268 MB, so a convolution's input, such as silu(group_norm(x)), is
as large as a network's other arrays together. A band of output rows needs those of the input rows alone that its kernel
covers, which overlap the next band's by KH - 1. Bands begin at multiples of TILE rows, where the tiles of
Winograd's method begin: the result of a 3x3 kernel has the bits of one convolution.
"""

from collections.abc import Callable
from typing import Any

from minidiff.engine.backend import Array, Backend

BYTES = 1 << 24  # of a band's input: it stays in a last-level cache
TILE = 4


def exceeds_a_band(shape: tuple[int, ...]) -> bool:
    """Whether an image of this shape (N, H, W, C) is larger than a band."""
    _, H, W, C = shape
    return 4 * H * W * C > BYTES


def conv2d_in_bands(
    backend: Backend, rows: Callable[[int, int, int], Array], shape: tuple[int, ...], w: Array, bias: Array | None,
    pad: tuple[int, ...], add: Array | None, overwrite: bool = False,
) -> Array:  # fmt: skip
    """`backend.conv2d` with stride 1 of an input of this shape (N, H, W, C) -> (N, P, Q, O).

    rows(n, first, last)  these rows of image n of the input, (1, last - first, W, C)
    overwrite             the result takes the memory of add, if add has its shape
    """
    (N, H, W, C), (O, KH, KW, _), (top, bottom, left, right) = shape, w.shape, pad
    P, Q = H + top + bottom - KH + 1, W + left + right - KW + 1
    whole = add is not None and add.shape[1:3] == (P, Q)  # otherwise add is (N, 1, 1, O)
    y: Any = add if overwrite and whole else backend.empty((N, P, Q, O))
    step = max(BYTES // (4 * W * C) // TILE, 1) * TILE  # rows of the output in a band
    edges = [*range(0, max(P - step, 0) + 1, step)]  # the last band is of up to two steps: none is too flat for tiles
    for n in range(N):
        for start, end in zip(edges, [*edges[1:], P], strict=True):
            first, last = start - top, end - 1 + KH - top  # rows of the padded input
            borders = max(-first, 0), max(last - H, 0), left, right
            terms = add if add is None else add[n : n + 1, start:end] if whole else add[n : n + 1]
            y[n : n + 1, start:end] = backend.conv2d(rows(n, max(first, 0), min(last, H)), w, bias, 1, borders, terms)
    return y
