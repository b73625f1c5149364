"""Convolution as a matrix product with the im2col matrix, which is never stored (implicit GEMM, conv.cu).

Weight gradients of wide 3x3 convolutions are in winograd.py.

The kernels come in two precisions: "float32", and "tf32", on tensor cores, where factors are truncated to ten bits of
mantissa and sums are float32. conv2d here is float32; that of conv_tf32.py is tf32.
"""

import numpy as np

from . import winograd
from .elementwise import sum_to
from .half import widen
from .launch import aligned, ceil_div, launch
from .memory import empty
from .product import DEPTH, SUFFIX, THREADS, shared, split_count, sum_splits

WINOGRAD_CHANNELS = {"float32": 64, "tf32": 256}  # least channels of a Winograd weight gradient, which is float32


def conv2d(x, w, bias=None, stride=1, pad=(0, 0, 0, 0), add=None):
    """y (N, P, Q, O), as in the reference."""
    return forward(x, w, bias, stride, pad, add, "float32")


def conv2d_backward(dy, x, w, stride=1, pad=(0, 0, 0, 0), need_dx=True, need_dw=True):
    """The gradients dx, dw, dbias, None if not needed."""
    return backward(dy, x, w, stride, pad, need_dx, need_dw, "float32")


def forward(x, w, bias, stride, pad, add, precision):
    """conv2d in that precision."""
    w = widen(w) if w.dtype == np.float16 else w
    (N, H, W, _), (O, KH, KW, _), (top, bottom, left, right) = x.shape, w.shape, pad
    y = empty((N, (H + top + bottom - KH) // stride + 1, (W + left + right - KW) // stride + 1, O))
    _convolve(x, w, bias, add, y, stride, (top, left), 1, precision)
    return y


def backward(dy, x, w, stride, pad, need_dx, need_dw, precision):
    """conv2d_backward in that precision."""
    dx = input_gradient(dy, x.shape, w, stride, pad, precision) if need_dx else None
    if not need_dw:
        return dx, None, None
    return dx, weight_gradient(dy, x, w.shape, stride, pad, precision), sum_to(dy, (dy.shape[-1],))


def input_gradient(dy, x_shape, w, stride, pad, precision="float32"):
    """dx: dy, dilated by the stride, convolved with the flipped kernel, input and output channels exchanged."""
    O, KH, KW, C = w.shape
    flipped, dx = empty((C, KH, KW, O)), empty(x_shape)
    launch("conv", "flip_weights", ceil_div(w.size, 256), 256, w, flipped, O, KH * KW, C)
    _convolve(dy, flipped, None, None, dx, 1, (KH - 1 - pad[0], KW - 1 - pad[2]), stride, precision)
    return dx


def weight_gradient(dy, x, w_shape, stride, pad, precision="float32"):
    """dw = dy^T times the im2col matrix of x."""
    (N, P, Q, O), (_, H, W, C), (_, KH, KW, _) = dy.shape, x.shape, w_shape
    if winograd.supports(w_shape, stride, dy.shape) and min(O, C) >= WINOGRAD_CHANNELS[precision]:
        return winograd.weight_gradient(dy, x, w_shape, pad)
    rows = 64 if O <= 64 else 128
    blocks, steps = ceil_div(O, rows) * ceil_div(KH * KW * C, 128), ceil_div(N * P * Q, DEPTH)
    splits = split_count(blocks, steps, rows)
    dw = empty(w_shape)
    parts = dw if splits == 1 else empty((splits, *w_shape))
    _check(KH, KW)
    launch(
        "conv", f"weight_gradient_{rows}x128{SUFFIX[precision]}", (blocks, splits), THREADS, dy, x, parts,
        N, H, W, C, P, Q, O, KH, KW, stride, pad[0], pad[2], shared=shared(rows, precision),
    )  # fmt: skip
    return sum_splits(parts, None, None, dw)


def _convolve(x, w, bias, add, y, stride, corner, dilation, precision):
    """y = x, dilated by dilation - 1 zeros between pixels, convolved with w; corner: padding above and to the left."""
    (N, H, W, C), (_, P, Q, O), (_, KH, KW, _) = x.shape, y.shape, w.shape
    vectorised = C % 4 == 0 and aligned(x, w)
    columns = 128 if O > 64 and vectorised else 64
    kind = f"128x{columns}{'' if vectorised else '_single'}{SUFFIX[precision]}"
    blocks = ceil_div(N * ceil_div(P, dilation) * ceil_div(Q, dilation), 128) * ceil_div(O, columns)
    taps = ceil_div(KH, dilation) * ceil_div(KW, dilation)
    steps = taps * ceil_div(C, DEPTH) if vectorised else ceil_div(taps * C, DEPTH)
    splits = split_count(blocks * dilation**2, steps, columns)
    parts = y if splits == 1 else empty((splits, *y.shape))
    _check(KH, KW)
    bias_and_add = (bias, add) if splits == 1 else (None, None)  # otherwise sum_splits adds them
    launch(
        "conv", f"convolve_{kind}", (blocks, splits, dilation**2), THREADS, x, w, *bias_and_add, parts, N, H, W, C,
        P, Q, O, KH, KW, stride, *corner, dilation, add is not None and add.shape != y.shape,
        shared=shared(columns, precision),
    )  # fmt: skip
    sum_splits(parts, bias, add, y)


def _check(KH, KW):
    """Raises ValueError for a kernel larger than 15 x 15: conv.cu has a mask of 15 rows and 15 columns."""
    if max(KH, KW) > 15:
        raise ValueError(f"conv2d: a kernel of {KH}x{KW} is too large: the GPU backends support up to 15x15")
