"""Convolution, fourth rung: a quarter of the multiplications, F(4x4, 3x3) of Lavin & Gray 2015 (arXiv:1509.09308).

Cut the output into tiles of 4 x 4; each depends on an input tile d of 6 x 6. With a 3 x 3 kernel g and * elementwise,

    y = A^T [ (G g G^T) * (B^T d B) ] A                           36 products instead of 144

Summed over channels, each of the 36 positions is a matrix product. `reference/winograd.py` does the same; here arrays
are laid out for speed. Each step runs over the whole batch before the next one, so every intermediate array is written
to memory and read again.
"""

import numpy as np
from minidiff_kernels.cpu.memory import empty
from minidiff_kernels.reference.winograd import matrices


def both_sides(matrix, tiles):
    """M t M^T of all tiles t (s, s, ...): down the first axis, then along the second -> (r, r, ...)."""
    (r, s), rest = matrix.shape, tiles.shape[2:]
    down, both = empty((r, s * tiles[0, 0].size)), empty((r, r, tiles[0, 0].size))
    np.matmul(matrix, tiles.reshape(s, -1), out=down)
    np.matmul(matrix, down.reshape(r, s, -1), out=both)
    return both.reshape(r, r, *rest)


def input_tiles(x, down, across):
    """The input tiles (6, 6, N, down, across, C) of x (N, H, W, C), zero-padded; down x across tiles an image."""
    N, H, W, C = x.shape
    padded = np.pad(x, ((0, 0), (1, 4 * down + 1 - H), (1, 4 * across + 1 - W), (0, 0)))
    d = empty((6, 6, N, down, across, C))
    for i, j in np.ndindex(6, 6):
        d[i, j] = padded[:, i : i + 4 * down : 4, j : j + 4 * across : 4]
    return d


def conv2d(x, w):
    """y (N, H, W, O) of x (N, H, W, C) and w (O, 3, 3, C), with padding 1."""
    (N, H, W, C), O = x.shape, len(w)
    down, across = -(-H // 4), -(-W // 4)
    At, G, Bt = (matrix.astype(np.float32) for matrix in matrices())
    U = both_sides(G, np.ascontiguousarray(w.transpose(1, 2, 3, 0)))  # (6, 6, C, O)
    V = both_sides(Bt, input_tiles(x, down, across))  # (6, 6, N, down, across, C)
    M = empty((36, N * down * across, O))
    np.matmul(V.reshape(36, -1, C), U.reshape(36, C, O), out=M)
    tiles = both_sides(At, M.reshape(6, 6, N, down, across, O))  # (4, 4, N, down, across, O)
    y = tiles.transpose(2, 3, 0, 4, 1, 5).reshape(N, 4 * down, 4 * across, O)
    return np.ascontiguousarray(y[:, :H, :W])
