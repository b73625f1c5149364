"""Convolutions in bands of a few rows: the bits of one convolution."""

import numpy as np
import pytest
from against_torch import draw

from minidiff.engine.backend import get_backend
from minidiff.engine.fused import bands
from minidiff.engine.fused.norm_conv import norm_conv
from minidiff.engine.fused.upsample_conv import upsample_conv
from minidiff.engine.nn import Conv2d, GroupNorm
from minidiff.engine.tensor import Tensor

# H, W, C, O, kernel, padding; by Winograd's method and by gathered patches, with a rest of rows or none
SHAPES = [
    (40, 24, 32, 48, 3, (1, 1, 1, 1)),
    (38, 17, 32, 32, 3, (1, 1, 1, 1)),
    (23, 12, 32, 3, 3, (1, 1, 1, 1)),
    (24, 12, 16, 32, 1, (0, 0, 0, 0)),
    (3, 12, 32, 32, 3, (1, 1, 1, 1)),
]


@pytest.fixture(autouse=True)
def small_bands(monkeypatch):
    monkeypatch.setattr(bands, "BYTES", 1)


@pytest.mark.parametrize("name", ["numpy", "numba"])
@pytest.mark.parametrize("added", [None, "temb", "residual", "overwritten"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bands_have_the_bits_of_one_convolution(name, added, shape):
    H, W, C, O, kernel, pad = shape
    backend, x, w, bias = get_backend(name), draw(2, H, W, C), draw(O, kernel, kernel, C, seed=1), draw(O, seed=2)
    whole = backend.conv2d(x, w, bias, 1, pad)
    add = None if added is None else draw(2, 1, 1, O, seed=3) if added == "temb" else draw(*whole.shape, seed=3)
    want = backend.conv2d(x, w, bias, 1, pad, add)
    read = []

    def rows(n, first, last):
        read.append(last - first)
        return x[n : n + 1, first:last]

    y = bands.conv2d_in_bands(backend, rows, x.shape, w, bias, pad, add, added == "overwritten")
    assert (y is add) == (added == "overwritten")
    assert max(read) <= 3 * bands.TILE + kernel
    if name == "numba":
        np.testing.assert_array_equal(y, want)
    else:  # NumPy's matrix product depends on the number of rows in the last bits
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-4)


def gradients(layer, x):
    """Output and all gradients of layer(x), a function of a Tensor that closes over its parameters."""
    x = Tensor(x, layer.parameters[0].backend, requires_grad=True)
    for p in layer.parameters:
        p.grad = None
    y = layer(x)
    y.backward(draw(*y.shape, seed=9))
    return [y.data, x.grad, *(p.grad for p in layer.parameters)]


class Normed:
    def __init__(self):
        rng = np.random.default_rng(0)
        self.norm, self.conv = GroupNorm(8, 32, 1e-5).to("numba"), Conv2d(32, 32, 3, rng, pad=1).to("numba")
        self.shortcut = Conv2d(32, 32, 1, rng).to("numba")
        self.parameters = [*self.norm.parameters(), *self.conv.parameters(), *self.shortcut.parameters()]

    def __call__(self, x):
        return norm_conv(self.norm, self.conv, x, add=self.shortcut(x), overwrite=True)


class Upsampled:
    def __init__(self, size=None):
        self.conv, self.size = Conv2d(32, 48, 3, np.random.default_rng(0), pad=1).to("numba"), size
        self.parameters = self.conv.parameters()

    def __call__(self, x):
        return upsample_conv(self.conv, x, self.size)


@pytest.mark.parametrize("layer", [Normed(), Upsampled(), Upsampled((31, 63))], ids=["norm", "upsample", "cropped"])
def test_layers_in_bands_have_the_same_outputs_and_gradients(layer, monkeypatch):
    x = draw(2, 16, 32, 32)
    in_bands = gradients(layer, x)
    monkeypatch.setattr(bands, "BYTES", 1 << 25)
    for got, want in zip(in_bands, gradients(layer, x), strict=True):
        np.testing.assert_array_equal(got, want)
