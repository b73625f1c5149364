"""Group normalisation, optionally followed by SiLU (norm.cu)."""

from .elementwise import sum_to
from .launch import ceil_div, launch
from .memory import empty

THREADS = 512


def group_norm(x, weight, bias, groups, eps, silu=False):
    """y, mean, rstd: the output (x's shape), and the statistics (N, groups) that the backward pass needs."""
    y = empty(x.shape)
    return y, *_group_norm(x, weight, bias, y, groups, eps, silu)


def group_statistics(x, groups, eps):
    """mean and rstd (N, groups) alone."""
    return _group_norm(x, None, None, None, groups, eps, False)


def _group_norm(x, weight, bias, y, groups, eps, silu):
    """mean and rstd; y, unless it is None."""
    N, C = len(x), x.shape[-1]
    mean, rstd, width = empty((N, groups)), empty((N, groups)), _width(C, groups)
    S = x[0].size // C
    launch(
        "norm", "group_norm", N * (C // width), THREADS, x, weight, bias, y, mean, rstd, S, C, groups, width,
        float(eps), silu,
    )  # fmt: skip
    return mean, rstd


def normalise(x, weight, bias, mean, rstd, silu=False):
    """y from statistics that are known."""
    y, C, groups = empty(x.shape), x.shape[-1], mean.shape[1]
    launch(
        "norm", "normalise", ceil_div(x.size, THREADS), THREADS, x, weight, bias, mean, rstd, y,
        x.size, x[0].size, C, groups, silu,
    )  # fmt: skip
    return y


def group_norm_backward(dy, x, weight, bias, mean, rstd, silu=False, y=None, add=None):
    """The gradients dx + add, dweight, dbias; in y, which may be dy, the output once more."""
    N, C, groups = len(x), x.shape[-1], mean.shape[1]
    dx, parts = empty(x.shape), empty((N, 2, C))
    width = _width(C, groups)
    S = x[0].size // C
    launch(
        "norm", "group_norm_backward", N * (C // width), THREADS, dy, x, weight, bias, mean, rstd, dx, parts, y,
        add, S, C, groups, width, silu,
    )  # fmt: skip
    dbias, dweight = sum_to(parts, (2, C))
    return dx, dweight, dbias


def _width(C, groups):
    """Channels of a thread block: the fewest whole groups with 16 channels or more, if they fit in THREADS."""
    each = C // groups
    for together in range(1, groups + 1):
        if groups % together == 0 and each * together >= 16:
            return each * together if each * together <= THREADS else each
    return C if C <= THREADS else each
