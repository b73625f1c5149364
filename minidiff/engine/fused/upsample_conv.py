"""Nearest-neighbour upsampling by 2 and convolution as one node of the tape, which does not keep what is upsampled.

The convolution's weight gradient needs the upsampled image, four times as large as x. It is computed from x again in
the backward pass; in the forward pass large images are upsampled in bands (bands.py).
"""

from functools import partial

from minidiff.engine.fused.bands import conv2d_in_bands, exceeds_a_band
from minidiff.engine.nn import Conv2d
from minidiff.engine.tensor import Function, Tensor


class UpsampleConv(Function):
    """One use of `upsample_conv`; size (H', W') of the upsampled image, which may be cropped."""

    half = (1,)
    keeps = (0, 1)

    def __init__(self, size, pad):
        self.size, self.pad = size, pad

    def forward(self, x, w, bias):
        (N, _, _, C), backend = x.shape, self.backend
        shape = N, *self.size, C
        if exceeds_a_band(shape):
            return conv2d_in_bands(backend, partial(self._rows, x), shape, w, bias, self.pad, None)
        return backend.conv2d(self._upsampled(x, 0, self.size[0]), w, bias, 1, self.pad)

    def backward(self, dy):
        (x, w), need_dw = map(self.input, self.keeps), self.needs(1) or self.needs(2)
        h = self._upsampled(x, 0, self.size[0])  # (N, H', W', C)
        dh, dw, dbias = self.backend.conv2d_backward(dy, h, w, 1, self.pad, self.needs(0), need_dw)
        return self._gradient(dh, x.shape) if self.needs(0) else None, dw, dbias

    def _gradient(self, dh, x_shape):
        """dx, with zeros as the gradient of what was cropped."""
        (N, H, W, C), size = x_shape, dh.shape[1:3]
        if size != (2 * H, 2 * W):
            whole = self.backend.xp.zeros((N, 2 * H, 2 * W, C), dh.dtype)
            whole[:, : size[0], : size[1]] = dh
            dh = whole
        return self.backend.upsample_nearest_backward(dh)

    def _rows(self, x, n, first, last):
        """Rows first ... last - 1 of image n, upsampled: (1, last - first, W', C)."""
        return self._upsampled(x[n : n + 1, first // 2 : -(-last // 2)], first % 2, last - first)

    def _upsampled(self, x, first, rows):
        """Of x, upsampled and cropped to width W', `rows` rows from `first` on."""
        y = self.backend.upsample_nearest(x)[:, first : first + rows, : self.size[1]]
        return self.backend.xp.ascontiguousarray(y)


def upsample_conv(conv: Conv2d, x: Tensor, size: tuple[int, ...] | None = None) -> Tensor:
    """conv, of stride 1, of x upsampled by 2: (N, H, W, C) -> (N, P, Q, O).

    size: (H', W'), to which the upsampled image is cropped. Raises ValueError if the shapes do not match.
    """
    N, H, W, C = x.shape
    size = (2 * H, 2 * W) if size is None else size
    if C != conv.weight.shape[-1]:
        raise ValueError(f"upsample_conv: the input has {C} channels, the weight expects {conv.weight.shape[-1]}")
    return UpsampleConv(size, conv.pad)(x, conv.weight, conv.bias)
