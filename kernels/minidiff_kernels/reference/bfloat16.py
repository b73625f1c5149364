"""Convolution and attention with factors in bfloat16: a float32 without the lower 16 bits.

Both factors of each product are rounded to 8 significant bits, so that a relative error of up to 2^-8 comes with each.
The product of two such numbers is exact in float32, in which everything else is computed: sums, biases, softmax.
"""

import numpy as np

from . import conv
from .attention import scores


def round_to_bfloat16(x):
    """x rounded to the nearest bfloat16, ties to even; as float32, any shape.

    Half of the last place is added, less one unless that place is odd; then the lower 16 bits are dropped.
    """
    x = np.asarray(x, np.float32)
    bits = x.view(np.uint32)
    odd = (bits >> 16) & 1
    nearest = ((bits + 0x7FFF + odd) & 0xFFFF0000).view(np.float32)
    return np.where(np.isnan(x), np.float32(np.nan), nearest)  # the sum could turn NaN into another number


def conv2d(x, w, bias=None, stride=1, pad=(0, 0, 0, 0), add=None):
    """y (N, P, Q, O), as conv.py's, of rounded x and w."""
    return conv.conv2d(round_to_bfloat16(x), round_to_bfloat16(w), bias, stride, pad, add)


def attention(q, k, v, causal=False):
    """o and lse, as attention.py's, of rounded q, k and v. Probabilities are rounded for their product with v.

    They are normalised after it, by the sum of those before rounding.
    """
    s = scores(round_to_bfloat16(q), round_to_bfloat16(k), causal)
    row_max = s.max(-1, keepdims=True)
    p = np.exp(s - row_max)  # (N, heads, T, S), not yet normalised
    row_sum = p.sum(-1, keepdims=True)
    o = np.einsum("nhts,nshd->nhtd", round_to_bfloat16(p), round_to_bfloat16(v), optimize=True) / row_sum
    return np.ascontiguousarray(o.swapaxes(1, 2)), (row_max + np.log(row_sum))[..., 0]
