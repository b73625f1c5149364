"""GroupNorm with SiLU, second rung: the library's kernel, which processes one image at a time.

It fits in L2, as do some channels of a large one. It is read from memory once, prefetched during the previous one;
mean, variance, normalisation and SiLU read it from L2, and only y is written. The backward pass recomputes xhat and
SiLU's derivative.
"""

from minidiff.engine.backend import get_backend

numba = get_backend("numba")


def group_norm_silu(dy, x, weight, bias, groups=32, eps=1e-5):
    """The output and all gradients, by name; dy, x (N, H, W, C), weight, bias (C,)."""
    y, mean, rstd = numba.group_norm(x, weight, bias, groups, eps, True)
    dx, dweight, dbias = numba.group_norm_backward(dy, x, weight, bias, mean, rstd, True)
    return {"y": y, "dx": dx, "dweight": dweight, "dbias": dbias}
