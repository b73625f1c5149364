"""3x3 convolution with stride 1 by Winograd's F(4x4, 3x3) (Lavin & Gray 2015, arXiv:1509.09308, section 4).

In one dimension, four outputs of a kernel of three taps take six multiplications instead of twelve, those of the
elementwise product * in y = A^T [ (G g) * (B^T d) ]. In two dimensions, with the kernel g (3, 3) and the input tile d
(6, 6) of an output tile y (4, 4),

    forward           y  = A^T [ (G g G^T) * (B^T d B) ] A                        summed over input channels
    input gradient    the same of dy, with the flipped kernel
    weight gradient   dg = G^T [ sum over tiles of (A dy A^T) * (B^T d B) ] G     since Y = M X M^T has dX = M^T dY M

The result is that of conv.py but for rounding. The output of an image is down x across tiles; input tiles overlap by 2.
"""

import numpy as np

from .conv import output_size, zero_padded


def matrices(a=5 / 8, b=3 / 2):
    """A^T (4, 6), G (6, 3) and B^T (6, 6) for the interpolation points 0, a, -a, b, -b and infinity.

    The product of polynomials p, of 4 coefficients, and g, of 3, has 6 coefficients: its values at six points give them
    (Toom & Cook). A and G evaluate p and g; column i of B is the polynomial that is 1 at point i and 0 at the others,
    but for a factor that G divides by. So p g = B [ (G g) * (A p) ], and the transpose of this map of p is convolution.
    The usual points are a, b = 1, 2; with 5/8 and 3/2 the rounding error is about half as large.
    """
    points = np.array([0, a, -a, b, -b])

    def evaluation(n):
        """The values at the six points of a polynomial with n coefficients: at infinity, the last of them."""
        return np.vstack([np.vander(points, n, increasing=True), np.eye(n)[-1]])

    zero_at_others = [np.poly(points[points != p])[::-1] for p in points]  # the product of (t - q), from t^0 on
    at_point = [np.prod(p - points[points != p]) for p in points]  # its value at p; at infinity 1
    Bt = np.vstack([*(np.append(row, 0) for row in zero_at_others), np.poly(points)[::-1]])
    return evaluation(4).T, evaluation(3) / np.append(at_point, 1)[:, None], Bt


def tile_grid(size):
    """down, across: the 4 x 4 tiles that cover an output of that size (P, Q)."""
    return -(-size[0] // 4), -(-size[1] // 4)


def input_tiles(x, size, pad):
    """d (N, down, across, C, 6, 6): the input tiles of an output of that size, zero outside the image."""
    (_, H, W, _), (down, across), (top, _, left, _) = x.shape, tile_grid(size), pad
    xp = zero_padded(x, (top, 4 * down + 2 - H - top, left, 4 * across + 2 - W - left))
    return np.lib.stride_tricks.sliding_window_view(xp, (6, 6), (1, 2))[:, ::4, ::4]


def output_tiles(y):
    """The tiles (N, down, across, O, 4, 4) of y (N, P, Q, O), zero outside the image."""
    (N, P, Q, O), (down, across) = y.shape, tile_grid(y.shape[1:3])
    yp = zero_padded(y, (0, 4 * down - P, 0, 4 * across - Q))
    return yp.reshape(N, down, 4, across, 4, O).transpose(0, 1, 3, 5, 2, 4)


def from_output_tiles(tiles, size):
    """The inverse of output_tiles: y (N, P, Q, O)."""
    N, down, across, O, _, _ = tiles.shape
    y = tiles.transpose(0, 1, 4, 2, 5, 3).reshape(N, 4 * down, 4 * across, O)
    return np.ascontiguousarray(y[:, : size[0], : size[1]])


def conv2d(x, w, pad=(0, 0, 0, 0)):
    """y (N, P, Q, O) of x (N, H, W, C) and w (O, 3, 3, C)."""
    At, G, Bt = (matrix.astype(x.dtype) for matrix in matrices())
    size = output_size(x.shape, w.shape, 1, pad)
    U = G @ w.transpose(0, 3, 1, 2) @ G.T  # (O, C, 6, 6)
    V = Bt @ input_tiles(x, size, pad) @ Bt.T  # (N, down, across, C, 6, 6)
    M = np.einsum("ocij,npqcij->npqoij", U, V, optimize=True)  # a matrix product at each of the 36 positions (i, j)
    return from_output_tiles(At @ M @ At.T, size)


def conv2d_backward(dy, x, w, pad=(0, 0, 0, 0)):
    """The gradients dx and dw."""
    At, G, Bt = (matrix.astype(x.dtype) for matrix in matrices())
    (_, P, Q, _), (_, H, W, _), (top, _, left, _) = dy.shape, x.shape, pad
    V = Bt @ input_tiles(x, (P, Q), pad) @ Bt.T  # (N, down, across, C, 6, 6)
    dM = At.T @ output_tiles(dy) @ At  # (N, down, across, O, 6, 6)
    dU = np.einsum("npqoij,npqcij->ocij", dM, V, optimize=True)
    dw = np.ascontiguousarray((G.T @ dU @ G).transpose(0, 2, 3, 1))  # (O, C, 3, 3) -> (O, 3, 3, C)
    dxp = conv2d(dy, w[:, ::-1, ::-1].transpose(3, 1, 2, 0), (2, 2, 2, 2))  # of the padded x, (N, P + 2, Q + 2, C)
    return np.ascontiguousarray(dxp[:, top : top + H, left : left + W]), dw
