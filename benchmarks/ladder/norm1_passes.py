"""GroupNorm with SiLU, first rung: NumPy, one operation at a time.

It is the reference. Each operation reads whole arrays from memory and writes its result there for the next one. There
is little arithmetic: these passes over memory take the time.
"""

from minidiff.engine.backend import get_backend

numpy = get_backend("numpy")


def group_norm_silu(dy, x, weight, bias, groups=32, eps=1e-5):
    """The output and all gradients, by name; dy, x (N, H, W, C), weight, bias (C,)."""
    y, mean, rstd = numpy.group_norm(x, weight, bias, groups, eps, True)
    dx, dweight, dbias = numpy.group_norm_backward(dy, x, weight, bias, mean, rstd, True)
    return {"y": y, "dx": dx, "dweight": dweight, "dbias": dbias}
