"""Group normalisation, SiLU and convolution as one node of the tape, which does not keep the convolution's input.

The convolution's weight gradient needs h = silu(group_norm(x)). h is as large as x, and x is kept anyway: for the
normalisation's gradient, which computes h on its way. So backward runs in this order:

    dh = gradient of the convolution by its input
    dx, and h once more = gradient of normalisation and SiLU, from dh and x
    dw = gradient of the convolution by its weight, from h

This is gradient checkpointing (Chen et al. 2016) without its second forward pass.
"""

from minidiff.engine.functional import check_conv2d
from minidiff.engine.nn import Conv2d, GroupNorm
from minidiff.engine.tensor import Function, Tensor


class NormConv(Function):
    """One use of `norm_conv`."""

    half = (3,)
    keeps = (0, 1, 2, 3)
    totals = (0,)

    def __init__(self, groups, eps, stride, pad):
        self.groups, self.eps = groups, eps
        self.stride, self.pad = stride, pad

    def forward(self, x, gain, shift, w, bias, add):
        h, mean, rstd = self.backend.group_norm(x, gain, shift, self.groups, self.eps, True)
        self.statistics = mean, rstd
        return self.backend.conv2d(h, w, bias, self.stride, self.pad, add)

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


def norm_conv(norm: GroupNorm, conv: Conv2d, x: Tensor, add: Tensor | None = None) -> Tensor:
    """conv(norm(x, silu=True), add): (N, H, W, C) -> (N, P, Q, O). Raises ValueError if the shapes do not match."""
    if norm.weight.shape != x.shape[-1:]:
        raise ValueError(f"norm_conv: the input has {x.shape[-1]} channels, the norm {norm.weight.shape[0]}")
    check_conv2d(x, conv.weight, conv.bias, conv.stride, conv.pad, add)
    node = NormConv(norm.groups, norm.eps, conv.stride, conv.pad)
    return node(x, norm.weight, norm.bias, conv.weight, conv.bias, add)
