"""Convolution, fifth rung: Winograd's way again, a block of tiles at a time. It is the library's own kernel.

`cpu/winograd.py` transforms a few dozen tiles, multiplies them and transforms them back before it goes on to the next
block. All that lies between input and output stays in the second-level cache; the transforms
(`cpu/winograd_transforms.py`) are sums of vectors, with the zeros and the signs of the matrices written out.
"""

from minidiff.engine.backend import get_backend


def conv2d(x, w):
    """y (N, H, W, O) of x (N, H, W, C) and w (O, 3, 3, C), with one row of zeros all around the picture."""
    return get_backend("numba").conv2d(x, w, pad=(1, 1, 1, 1))
