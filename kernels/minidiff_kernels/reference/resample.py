"""Nearest-neighbour upsampling and concatenation along the channels."""

import numpy as np


def upsample_nearest(x):
    """Each pixel is repeated in a 2 x 2 block: x (N, H, W, C) -> y (N, 2H, 2W, C)."""
    return x.repeat(2, 1).repeat(2, 2)


def upsample_nearest_backward(dy):
    """The sum of each 2 x 2 block: dy (N, 2H, 2W, C) -> dx (N, H, W, C)."""
    N, H2, W2, C = dy.shape
    return dy.reshape(N, H2 // 2, 2, W2 // 2, 2, C).sum((2, 4))


def concat(a, b):
    """Channels of a, then channels of b: (..., A), (..., B) -> (..., A + B)."""
    return np.concatenate((a, b), -1)


def concat_backward(dy, channels):
    """da (..., channels) and db (..., remaining channels)."""
    return dy[..., :channels].copy(), dy[..., channels:].copy()
