"""Exercises of chapter 16: Winograd convolution, forward and backward."""

from typing import Any

import numpy as np

from minidiff.learn.exercise import Exercise

Array = np.ndarray

F23 = (
    np.array([[1, 1, 1, 0], [0, 1, -1, 1]], float),
    np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]], float),
)
"""A^T (2, 4), G (4, 3) and B^T (4, 4) of F(2, 3), for the points 0, 1, -1 and infinity."""

F43 = (
    np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], float),
    np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
    np.array(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        float,
    ),
)
"""The same of F(4, 3), for the points 0, 1, -1, 2, -2 and infinity (Lavin & Gray 2015, equation 14)."""


def winograd_tile(d: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A tile of a convolution by Winograd's F(2x2, 3x3): 16 multiplications instead of 36.

    In one dimension, two outputs of a kernel g of three taps on four inputs d are

        m0 = (d0 - d2) g0                        m1 = (d1 + d2) (g0 + g1 + g2) / 2
        m2 = (d2 - d1) (g0 - g1 + g2) / 2        m3 = (d3 - d1) g2
        y0 = m0 + m1 + m2                        y1 = m1 - m2 + m3

    that is, y = A^T [ (G g) * (B^T d) ] with matrices A^T (2, 4), G (4, 3), the halves included, and B^T (4, 4). In two
    dimensions they apply down the columns and along the rows.

    d  input tile, (4, 4)
    g  kernel, (3, 3)

    Returns the transformed kernel U = G g G^T (4, 4), the transformed tile V = B^T d B (4, 4), and y (2, 2).
    """
    At = np.array([[1, 1, 1, 0], [0, 1, -1, 1]])
    G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    Bt = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]])
    U, V = G @ g @ G.T, Bt @ d @ Bt.T  # (4, 4)
    return U, V, At @ (U * V) @ At.T


def _from(U: Array, V: Array) -> tuple[Array, Array, Array]:
    """The results that follow from U and V."""
    return U, V, F23[0] @ (U * V) @ F23[0].T


def _without_halves(d: Array, g: Array) -> tuple[Array, Array, Array]:
    """U lacks the halves: the second and the third row of G are (g0 + g1 + g2) / 2 and (g0 - g1 + g2) / 2."""
    G = F23[1] * [[1], [2], [2], [1]]
    return _from(G @ g @ G.T, F23[2] @ d @ F23[2].T)


def _untransposed(d: Array, g: Array) -> tuple[Array, Array, Array]:
    """V is B d B^T: the rows of B^T are the four sums of inputs, so the tile becomes B^T d B."""
    Bt = F23[2]
    return _from(F23[1] @ g @ F23[1].T, Bt.T @ d @ Bt)


def _flipped(d: Array, g: Array) -> tuple[Array, Array, Array]:
    """The kernel is flipped: y[0] = d[0] g[0] + d[1] g[1] + d[2] g[2] is a correlation, as in every network."""
    return winograd_tile(d, g[::-1, ::-1])


def _matrix_product(d: Array, g: Array) -> tuple[Array, Array, Array]:
    """U and V are right, and multiplied as matrices: their product is elementwise, 16 multiplications."""
    U, V, _ = winograd_tile(d, g)
    return U, V, F23[0] @ (U @ V) @ F23[0].T


def _sign_of_m3(d: Array, g: Array) -> tuple[Array, Array, Array]:
    """m3 has the sign that Lavin & Gray give it, (d1 - d3) g2, for a y1 that ends in - m3: here it is (d3 - d1) g2."""
    Bt = F23[2] * [[1], [1], [1], [-1]]
    return _from(F23[1] @ g @ F23[1].T, Bt @ d @ Bt.T)


def winograd_backward(
    dy: np.ndarray, d: np.ndarray, g: np.ndarray, At: np.ndarray, G: np.ndarray, Bt: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of Winograd tiles with respect to their inputs and the kernels.

    Forward, for the tile t and the output channel o, * being elementwise and the sum over the input channels c:

        y[t, o] = A^T [ sum of (G g[o, c] G^T) * (B^T d[t, c] B) ] A

    dy  gradient with respect to y, (T, O, m, m)
    d   input tiles, (T, C, n, n)
    g   kernels, (O, C, 3, 3)
    At  (m, n);  G  (n, 3);  Bt  (n, n)

    Returns dd (T, C, n, n), of each tile by itself, and dg (O, C, 3, 3), the sum over all tiles.
    """
    U, V = G @ g @ G.T, Bt @ d @ Bt.T  # (O, C, n, n), (T, C, n, n)
    dM = At.T @ dy @ At  # (T, O, n, n)
    dd = Bt.T @ np.einsum("ocij,toij->tcij", U, dM) @ Bt
    dg = G.T @ np.einsum("toij,tcij->ocij", dM, V) @ G
    return dd, dg


def _inverse(dy: Array, d: Array, g: Array, At: Array, G: Array, Bt: Array) -> tuple[Array, Array]:
    """dy goes back by an inverse of A^T: a gradient goes back by the transposed matrix, A dy A^T."""
    return winograd_backward(dy, d, g, np.linalg.pinv(At).T, G, Bt)


def _transformed_again(dy: Array, d: Array, g: Array, At: Array, G: Array, Bt: Array) -> tuple[Array, Array]:
    """dd is transformed as d was, by B^T: backward takes the transposed matrix, B [...] B^T."""
    U, dM = G @ g @ G.T, At.T @ dy @ At
    dd = Bt @ np.einsum("ocij,toij->tcij", U, dM) @ Bt.T
    return dd, winograd_backward(dy, d, g, At, G, Bt)[1]


def _kernel_flipped(dy: Array, d: Array, g: Array, At: Array, G: Array, Bt: Array) -> tuple[Array, Array]:
    """dd flips the kernel: that is needed for a second forward convolution; the transposes do it by themselves."""
    dd, _ = winograd_backward(dy, d, g[..., ::-1, ::-1], At, G, Bt)
    return dd, winograd_backward(dy, d, g, At, G, Bt)[1]


def _mean_over_tiles(dy: Array, d: Array, g: Array, At: Array, G: Array, Bt: Array) -> tuple[Array, Array]:
    """dg is a mean over the tiles: all of them use the same kernel, so its gradients add up."""
    dd, dg = winograd_backward(dy, d, g, At, G, Bt)
    return dd, dg / len(d)


def _untransformed_input(dy: Array, d: Array, g: Array, At: Array, G: Array, Bt: Array) -> tuple[Array, Array]:
    """dg pairs A dy A^T with the tile d itself: the factor of U in the product was B^T d B."""
    dd, _ = winograd_backward(dy, d, g, At, G, Bt)
    return dd, G.T @ np.einsum("toij,tcij->ocij", At.T @ dy @ At, d) @ G


def _tile_and_kernel(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    return [(rng.standard_normal((4, 4)), rng.standard_normal((3, 3))) for _ in range(2)]


def _tiles(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    found = []
    for At, G, Bt in (F23, F43):
        m, n = At.shape
        dy, d = rng.standard_normal((5, 3, m, m)), rng.standard_normal((5, 2, n, n))
        found.append((dy, d, rng.standard_normal((3, 2, 3, 3)), At, G, Bt))
    return found


EXERCISES = (
    Exercise(
        "Winograd tile",
        16,
        winograd_tile,
        _tile_and_kernel,
        (_without_halves, _untransposed, _flipped, _matrix_product, _sign_of_m3),
    ),
    Exercise(
        "Winograd backward",
        16,
        winograd_backward,
        _tiles,
        (_inverse, _transformed_again, _kernel_flipped, _mean_over_tiles, _untransformed_input),
    ),
)
