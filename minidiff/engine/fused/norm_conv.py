"""Group normalisation, SiLU and convolution as one node of the tape, which does not keep the convolution's input.

The convolution's weight gradient needs h = silu(group_norm(x)). h is as large as x, and x is kept anyway: for the
normalisation's gradient, which computes h on its way. So backward runs in this order:

    dh = gradient of the convolution by its input
    dx, and h once more = gradient of normalisation and SiLU, from dh and x
    dw = gradient of the convolution by its weight, from h

This is gradient checkpointing (Chen et al. 2016) without its second forward pass. Of large images not even the forward
pass stores h: it is computed in bands (bands.py).
"""

from minidiff.engine.functional import check_conv2d
from minidiff.engine.fused.bands import conv2d_in_bands, exceeds_a_band
from minidiff.engine.nn import Conv2d, GroupNorm
from minidiff.engine.tensor import Function, Tensor


class NormConv(Function):
    """One use of `norm_conv`."""

    half = (3,)
    keeps = (0, 1, 2, 3)
    totals = (0,)

    def __init__(self, groups, eps, stride, pad, overwrite):
        self.groups, self.eps = groups, eps
        self.stride, self.pad, self.overwrite = stride, pad, overwrite

    def forward(self, x, gain, shift, w, bias, add):
        convolve = self._in_bands if self.stride == 1 and exceeds_a_band(x.shape) else self._at_once
        y, mean, rstd = convolve(x, gain, shift, w, bias, add)
        self.statistics = mean, rstd
        return y

    def _at_once(self, x, gain, shift, w, bias, add):
        h, mean, rstd = self.backend.group_norm(x, gain, shift, self.groups, self.eps, True)
        return self.backend.conv2d(h, w, bias, self.stride, self.pad, add), mean, rstd

    def _in_bands(self, x, gain, shift, w, bias, add):
        mean, rstd = self.backend.group_statistics(x, self.groups, self.eps)

        def rows(n, first, last):
            of_image = slice(n, n + 1)
            band, statistics = x[of_image, first:last], (mean[of_image], rstd[of_image])
            return self.backend.normalise(band, gain, shift, *statistics, True)

        y = conv2d_in_bands(self.backend, rows, x.shape, w, bias, self.pad, add, self.overwrite)
        return y, mean, rstd

    def backward(self, dy):
        conv2d_backward, (mean, rstd) = self.backend.conv2d_backward, self.statistics
        x, gain, shift, w = map(self.input, self.keeps)
        dh, _, _ = conv2d_backward(dy, x, w, self.stride, self.pad, need_dw=False)  # x has the shape of h
        dx, dgain, dshift = self.backend.group_norm_backward(
            dh, x, gain, shift, mean, rstd, True, dh, self.so_far(0)
        )  # dh becomes h
        need_dw = self.needs(3) or self.needs(4)
        _, dw, dbias = conv2d_backward(dy, dh, w, self.stride, self.pad, False, need_dw)
        return dx, dgain, dshift, dw, dbias, dy


def norm_conv(norm: GroupNorm, conv: Conv2d, x: Tensor, add: Tensor | None = None, overwrite: bool = False) -> Tensor:
    """conv(norm(x, silu=True), add): (N, H, W, C) -> (N, P, Q, O).

    overwrite: add is not used again, and the result may take its memory. Raises ValueError if the shapes do not match.
    """
    if norm.weight.shape != x.shape[-1:]:
        raise ValueError(f"norm_conv: the input has {x.shape[-1]} channels, the norm {norm.weight.shape[0]}")
    check_conv2d(x, conv.weight, conv.bias, conv.stride, conv.pad, add)
    node = NormConv(norm.groups, norm.eps, conv.stride, conv.pad, overwrite)
    return node(x, norm.weight, norm.bias, conv.weight, conv.bias, add)
