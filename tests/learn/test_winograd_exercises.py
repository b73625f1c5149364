"""The solutions of chapter 16 agree with the reference convolution and its gradients, in float64."""

import numpy as np
import pytest
from minidiff_kernels.reference import conv
from minidiff_kernels.reference.winograd import matrices

from minidiff.learn.chapters.kernels import winograd as chapter

# float64, and transforms whose elements are at most 8: rounding is below 1e-13 of the largest value
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def tiles_as_images(d):
    """Tiles (T, C, n, n) as images (T, n, n, C)."""
    return np.ascontiguousarray(d.transpose(0, 2, 3, 1))


def test_winograd_tile_is_the_convolution():
    d, g = np.random.default_rng(0).standard_normal((2, 4, 4))
    g = g[:3, :3]
    U, V, y = chapter.winograd_tile(d, g)
    np.testing.assert_allclose(y, conv.conv2d(d[None, :, :, None], g[None, :, :, None])[0, :, :, 0], **CLOSE)
    assert U.shape == V.shape == (4, 4)


def test_winograd_tile_multiplies_what_the_docstring_says():
    """With a row as tile and kernel, the first row of U and V holds the one-dimensional factors."""
    d, g = np.zeros((4, 4)), np.zeros((3, 3))
    d[0], g[0] = (1, 10, 100, 1000), (2, 20, 200)
    U, V, _ = chapter.winograd_tile(d, g)
    np.testing.assert_allclose(U[0], [2, 111, 91, 200])
    np.testing.assert_allclose(V[0], [-99, 110, 90, 990])


@pytest.mark.parametrize("of", [chapter.F23, chapter.F43], ids=("F(2, 3)", "F(4, 3)"))
def test_winograd_backward_is_the_reference_s(of):
    rng, (m, n) = np.random.default_rng(0), of[0].shape
    dy, d, g = rng.standard_normal((5, 3, m, m)), rng.standard_normal((5, 2, n, n)), rng.standard_normal((3, 2, 3, 3))
    dd, dg = chapter.winograd_backward(dy, d, g, *of)
    dx, dw, _ = conv.conv2d_backward(*map(tiles_as_images, (dy, d, g)))
    np.testing.assert_allclose(tiles_as_images(dd), dx, **CLOSE)
    np.testing.assert_allclose(tiles_as_images(dg), dw, **CLOSE)


def test_f43_has_the_library_s_matrices():
    for ours, theirs in zip(chapter.F43, matrices(1, 2), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-15)
