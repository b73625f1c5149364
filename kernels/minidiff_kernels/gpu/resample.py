"""Nearest-neighbour upsampling and concatenation along the channels."""

from .launch import aligned, ceil_div, launch
from .memory import empty


def upsample_nearest(x):
    """Each pixel is repeated in a 2 x 2 block: x (N, H, W, C) -> y (N, 2H, 2W, C)."""
    N, H, W, C = x.shape
    y = empty((N, 2 * H, 2 * W, C))
    _launch("upsample", y.size, (W,), (C,), x, y)
    return y


def upsample_nearest_backward(dy):
    """The sum of each 2 x 2 block: dy (N, 2H, 2W, C) -> dx (N, H, W, C)."""
    N, H2, W2, C = dy.shape
    dx = empty((N, H2 // 2, W2 // 2, C))
    _launch("upsample_backward", dx.size, (W2 // 2,), (C,), dy, dx)
    return dx


def concat(a, b):
    """Channels of a, then channels of b: (..., A), (..., B) -> (..., A + B)."""
    A, B = a.shape[-1], b.shape[-1]
    y = empty((*a.shape[:-1], A + B))
    _launch("concat", y.size, (), (A, B), a, b, y)
    return y


def concat_backward(dy, channels):
    """da (..., channels) and db (..., remaining channels)."""
    lead, A, B = dy.shape[:-1], channels, dy.shape[-1] - channels
    da, db = empty((*lead, A)), empty((*lead, B))
    _launch("split", dy.size, (), (A, B), dy, da, db)
    return da, db


def _launch(name, size, lengths, channels, *arrays):
    """Launch a kernel with one thread per float4 if channels and alignment allow it, else per float."""
    each = 4 if all(C % 4 == 0 for C in channels) and aligned(*arrays) else 1
    name, size = f"{name}_{'float4' if each == 4 else 'float'}", size // each
    launch("resample", name, ceil_div(size, 256), 256, *arrays, size, *lengths, *(C // each for C in channels))
