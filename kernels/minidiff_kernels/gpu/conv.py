"""Convolution as one product of matrices that are never stored; what a block does stands in conv.cu.

Only the weight gradient of a wide 3x3 convolution goes another way, that of winograd.py.

The same kernels come in two precisions: "float32", and "tf32", on tensor cores, where factors are cut to ten bits
of mantissa and sums stay float32. This file's conv2d is the first; conv_tf32.py has the second.
"""

from . import winograd
from .elementwise import sum_to
from .launch import aligned, blocks_of, launch
from .memory import empty
from .product import DEPTH, SUFFIX, THREADS, added, shared, splits_of

WIDE = {"float32": 64, "tf32": 256}  # channels from which a weight gradient goes Winograd's way, which is float32


def conv2d(x, w, bias=None, stride=1, pad=(0, 0, 0, 0), add=None):
    """y (N, P, Q, O), as in the reference."""
    return forward(x, w, bias, stride, pad, add, "float32")


def conv2d_backward(dy, x, w, stride=1, pad=(0, 0, 0, 0), need_dx=True):
    """The gradients dx (None if not needed), dw, dbias."""
    return backward(dy, x, w, stride, pad, need_dx, "float32")


def forward(x, w, bias, stride, pad, add, precision):
    """conv2d in that precision."""
    (N, H, W, _), (O, KH, KW, _), (top, bottom, left, right) = x.shape, w.shape, pad
    y = empty((N, (H + top + bottom - KH) // stride + 1, (W + left + right - KW) // stride + 1, O))
    _convolve(x, w, bias, add, y, stride, (top, left), 1, precision)
    return y


def backward(dy, x, w, stride, pad, need_dx, precision):
    """conv2d_backward in that precision."""
    dx = input_gradient(dy, x.shape, w, stride, pad, precision) if need_dx else None
    return dx, weight_gradient(dy, x, w.shape, stride, pad, precision), sum_to(dy, (dy.shape[-1],))


def input_gradient(dy, x_shape, w, stride, pad, precision="float32"):
    """dx: dy with holes between its pixels, convolved with w turned around."""
    O, KH, KW, C = w.shape
    turned, dx = empty((C, KH, KW, O)), empty(x_shape)
    launch("conv", "turn", blocks_of(w.size, 256), 256, w, turned, O, KH * KW, C)
    _convolve(dy, turned, None, None, dx, 1, (KH - 1 - pad[0], KW - 1 - pad[2]), stride, precision)
    return dx


def weight_gradient(dy, x, w_shape, stride, pad, precision="float32"):
    """dw: over all pixels, what goes into w's taps times what comes out."""
    (N, P, Q, O), (_, H, W, C), (_, KH, KW, _) = dy.shape, x.shape, w_shape
    if winograd.fits(w_shape, stride, dy.shape) and min(O, C) >= WIDE[precision]:
        return winograd.weight_gradient(dy, x, w_shape, pad)
    rows = 64 if O <= 64 else 128
    blocks, steps = blocks_of(O, rows) * blocks_of(KH * KW * C, 128), blocks_of(N * P * Q, DEPTH)
    splits = splits_of(blocks, steps, rows)
    dw = empty(w_shape)
    parts = dw if splits == 1 else empty((splits, *w_shape))
    _check(KH, KW)
    launch(
        "conv", f"correlate_{rows}x128{SUFFIX[precision]}", (blocks, splits), THREADS, dy, x, parts,
        N, H, W, C, P, Q, O, KH, KW, stride, pad[0], pad[2], shared=shared(rows, precision),
    )  # fmt: skip
    return added(parts, None, None, dw)


def _convolve(x, w, bias, add, y, stride, corner, holes, precision):
    """Into y: x, with holes - 1 zeros between its pixels, convolved with w. corner: zeros above and to the left."""
    (N, H, W, C), (_, P, Q, O), (_, KH, KW, _) = x.shape, y.shape, w.shape
    together = C % 4 == 0 and aligned(x, w)
    columns = 128 if O > 64 and together else 64
    kind = f"128x{columns}{'' if together else '_single'}{SUFFIX[precision]}"
    blocks = blocks_of(N * blocks_of(P, holes) * blocks_of(Q, holes), 128) * blocks_of(O, columns)
    taps = blocks_of(KH, holes) * blocks_of(KW, holes)
    steps = taps * blocks_of(C, DEPTH) if together else blocks_of(taps * C, DEPTH)
    splits = splits_of(blocks * holes**2, steps, columns)
    parts = y if splits == 1 else empty((splits, *y.shape))
    _check(KH, KW)
    at_once = (bias, add) if splits == 1 else (None, None)  # otherwise they are added with the parts
    launch(
        "conv", f"convolve_{kind}", (blocks, splits, holes**2), THREADS, x, w, *at_once, parts, N, H, W, C,
        P, Q, O, KH, KW, stride, *corner, holes, add is not None and add.shape != y.shape,
        shared=shared(columns, precision),
    )  # fmt: skip
    added(parts, bias, add, y)


def _check(KH, KW):
    """Kernels keep a bit for each row and column of a window."""
    if max(KH, KW) > 15:
        raise ValueError(f"conv2d: a window of {KH}x{KW} is too large; the GPU takes 15 on a side")
