"""3x3 convolution by Winograd's F(4x4, 3x3) (Lavin & Gray 2015, arXiv:1509.09308, section 4), and with stride 2.

In one dimension, four outputs of a kernel of three taps take six multiplications instead of twelve, those of the
elementwise product * in y = A^T [ (G g) * (B^T d) ]. In two dimensions, with the kernel g (3, 3) and the input tile d
(6, 6) of an output tile y (4, 4),

    forward           y  = A^T [ (G g G^T) * (B^T d B) ] A                        summed over input channels
    input gradient    dd = B [ (G g G^T) * (A dy A^T) ] B^T                       summed over output channels
    weight gradient   dg = G^T [ sum over tiles of (A dy A^T) * (B^T d B) ] G     since Y = M X M^T has dX = M^T dY M

With stride 2 the same holds for tiles d (5, 5) and y (2, 2): 25 multiplications instead of 36.

The result is that of conv.py but for rounding. The output of an image is down x across tiles; input tiles, 4 pixels
apart, overlap by 2, with stride 2 by 1.
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


def strided_matrices():
    """A^T (2, 5), G (5, 3) and B^T (5, 5) for stride 2: y0 and y1 depend on the inputs d0 ... d4.

    The odd inputs meet the middle tap only. The even ones and the outer taps are a convolution of two taps with stride
    1: d2 meets g2 in y0 and g0 in y1, so d2 (g0 + g2) serves both, and (d0 - d2) g0 and (d4 - d2) g2 correct it.
    """
    At = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    G = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 1, 0], [0, 0, 1]])
    Bt = np.array([[1, 0, -1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, -1, 0, 1]])
    return At, G, Bt


def matrices_of(stride, dtype):
    """A^T, G and B^T for a stride of 1 or 2."""
    return tuple(matrix.astype(dtype) for matrix in (matrices() if stride == 1 else strided_matrices()))


def tile_grid(size, stride=1):
    """down, across: the 4 x 4 or, with stride 2, 2 x 2 tiles that cover an output of that size (P, Q)."""
    side = 4 // stride
    return -(-size[0] // side), -(-size[1] // side)


def padded_input(x, size, pad, stride):
    """x padded with zeros, or cut, to the inputs of all tiles of an output of that size."""
    (_, H, W, _), (down, across), (top, _, left, _) = x.shape, tile_grid(size, stride), pad
    overlap = 3 - stride
    xp = zero_padded(x, (top, max(4 * down + overlap - H - top, 0), left, max(4 * across + overlap - W - left, 0)))
    return xp[:, : 4 * down + overlap, : 4 * across + overlap]


def input_tiles(xp, stride):
    """d (N, down, across, C, 6, 6), or with stride 2 (..., 5, 5), from the padded input."""
    side = 7 - stride
    return np.lib.stride_tricks.sliding_window_view(xp, (side, side), (1, 2))[:, ::4, ::4]


def output_tiles(y, stride):
    """The tiles (N, down, across, O, 4, 4), or with stride 2 (..., 2, 2), of y (N, P, Q, O), zero outside the image."""
    (N, P, Q, O), (down, across), side = y.shape, tile_grid(y.shape[1:3], stride), 4 // stride
    yp = zero_padded(y, (0, side * down - P, 0, side * across - Q))
    return yp.reshape(N, down, side, across, side, O).transpose(0, 1, 3, 5, 2, 4)


def from_output_tiles(tiles, size):
    """The inverse of output_tiles: y (N, P, Q, O)."""
    N, down, across, O, side, _ = tiles.shape
    y = tiles.transpose(0, 1, 4, 2, 5, 3).reshape(N, side * down, side * across, O)
    return np.ascontiguousarray(y[:, : size[0], : size[1]])


def conv2d(x, w, pad=(0, 0, 0, 0), stride=1):
    """y (N, P, Q, O) of x (N, H, W, C) and w (O, 3, 3, C)."""
    At, G, Bt = matrices_of(stride, x.dtype)
    size = output_size(x.shape, w.shape, stride, pad)
    U = G @ w.transpose(0, 3, 1, 2) @ G.T  # (O, C, 6, 6); with stride 2 (O, C, 5, 5)
    V = Bt @ input_tiles(padded_input(x, size, pad, stride), stride) @ Bt.T  # (N, down, across, C, 6, 6)
    M = np.einsum("ocij,npqcij->npqoij", U, V, optimize=True)  # a matrix product at each of the 36 positions (i, j)
    return from_output_tiles(At @ M @ At.T, size)


def conv2d_backward(dy, x, w, pad=(0, 0, 0, 0), stride=1):
    """The gradients dx and dw."""
    At, G, Bt = matrices_of(stride, x.dtype)
    (_, P, Q, _), (_, H, W, _), (top, _, left, _) = dy.shape, x.shape, pad
    xp = padded_input(x, (P, Q), pad, stride)
    U = G @ w.transpose(0, 3, 1, 2) @ G.T  # (O, C, 6, 6)
    V = Bt @ input_tiles(xp, stride) @ Bt.T  # (N, down, across, C, 6, 6)
    dM = At.T @ output_tiles(dy, stride) @ At  # (N, down, across, O, 6, 6)
    dU = np.einsum("npqoij,npqcij->ocij", dM, V, optimize=True)
    dw = np.ascontiguousarray((G.T @ dU @ G).transpose(0, 2, 3, 1))  # (O, C, 3, 3) -> (O, 3, 3, C)
    dd = Bt.T @ np.einsum("ocij,npqoij->npqcij", U, dM, optimize=True) @ Bt  # (N, down, across, C, 6, 6)
    dxp = np.zeros((len(x), max(xp.shape[1], top + H), max(xp.shape[2], left + W), x.shape[3]), x.dtype)
    for i, j in np.ndindex(dd.shape[4:]):  # tiles overlap, and their gradients add up
        dxp[:, i : i + 4 * dd.shape[1] : 4, j : j + 4 * dd.shape[2] : 4] += dd[..., i, j]
    return np.ascontiguousarray(dxp[:, top : top + H, left : left + W]), dw
