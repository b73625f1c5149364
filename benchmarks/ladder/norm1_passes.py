"""GroupNorm with SiLU, first rung: NumPy, an operation at a time.

It is the reference. Each operation goes over whole arrays, and what it makes is written to memory for the next to
fetch. There is little to compute on the way: the time goes into those passes.
"""

from minidiff.engine.backend import get_backend

numpy = get_backend("numpy")


def group_norm_silu(dy, x, weight, bias, groups=32, eps=1e-5):
    """The output and all gradients, by name; dy, x (N, H, W, C), weight, bias (C,)."""
    y, mean, rstd = numpy.group_norm(x, weight, bias, groups, eps, True)
    dx, dweight, dbias = numpy.group_norm_backward(dy, x, weight, bias, mean, rstd, True)
    return {"y": y, "dx": dx, "dweight": dweight, "dbias": dbias}
