"""Convolution on tensor cores: factors truncated to TF32 (ten bits of mantissa), sums in float32.

Accelerates reference/conv.py, to about three digits.
"""

from . import conv


def conv2d(x, w, bias=None, stride=1, pad=(0, 0, 0, 0), add=None):
    """y (N, P, Q, O), as in the reference, to about three digits."""
    return conv.forward(x, w, bias, stride, pad, add, "tf32")


def conv2d_backward(dy, x, w, stride=1, pad=(0, 0, 0, 0), need_dx=True, need_dw=True):
    """The gradients dx, dw, dbias, None if not needed; dbias in float32, as is dw from 256 channels on."""
    return conv.backward(dy, x, w, stride, pad, need_dx, need_dw, "tf32")
