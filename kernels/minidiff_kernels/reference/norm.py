"""Group normalisation (Wu & He 2018, arXiv:1803.08494, eq. 1), optionally followed by SiLU.

    xhat = (x - mean) rstd      mean, rstd = 1 / sqrt(var + eps): over all positions and the channels of a group
    z = xhat weight + bias      y = z, or z sigmoid(z)

x, y (N, ..., C)   weight, bias (C,)   mean, rstd (N, G)   C a multiple of G
With one group and one position (N, 1, C) this is layer normalisation.
"""

import numpy as np

from .elementwise import precise_sum, silu_backward
from .elementwise import silu as silu_forward


def grouped(x, groups):
    """x as (N, positions, G, C / G)."""
    return x.reshape(len(x), -1, groups, x.shape[-1] // groups)


def normalised(x, mean, rstd):
    """xhat, in x's shape."""
    xg = grouped(x, mean.shape[1])
    return ((xg - mean[:, None, :, None]) * rstd[:, None, :, None]).reshape(x.shape)


def mean_of_groups(xg):
    """The means over positions and the channels of a group: (N, positions, G, C / G) -> (N, G)."""
    return precise_sum(xg, (1, 3)) / np.asarray(xg.shape[1] * xg.shape[3], xg.dtype)


def group_norm(x, weight, bias, groups, eps, silu=False):
    """y, mean, rstd: the output, and the statistics that the backward pass needs."""
    mean, rstd = group_statistics(x, groups, eps)
    return normalise(x, weight, bias, mean, rstd, silu), mean, rstd


def group_statistics(x, groups, eps):
    """mean and rstd alone."""
    xg = grouped(x, groups)
    mean = mean_of_groups(xg)  # (N, G)
    var = mean_of_groups((xg - mean[:, None, :, None]) ** 2)
    return mean, 1 / np.sqrt(var + np.asarray(eps, x.dtype))


def normalise(x, weight, bias, mean, rstd, silu=False):
    """y from statistics that are known; x may be some rows of the image that they are of."""
    z = normalised(x, mean, rstd) * weight + bias
    return silu_forward(z) if silu else z


def group_norm_backward(dy, x, weight, bias, mean, rstd, silu=False, y=None, add=None):
    """The gradients dx, dweight, dbias; in y, which may be dy, the output once more, for who did not keep it.

    add: the gradient of x by what else uses it, in x's shape, which dx then includes.

    With g = dz weight, and <.> the mean over a group's positions and channels:
        dx = rstd (g - <g> - xhat <g xhat>)
    The second and third term are the gradients through mean and rstd. z is recomputed for SiLU's gradient.
    """
    xhat = normalised(x, mean, rstd)
    z = xhat * weight + bias
    dz = silu_backward(dy, z) if silu else dy.copy()
    if y is not None:
        y[...] = silu_forward(z) if silu else z
    G = mean.shape[1]
    g, xg = grouped(dz * weight, G), grouped(xhat, G)
    mean_g, mean_gx, rstd = (a[:, None, :, None] for a in (mean_of_groups(g), mean_of_groups(g * xg), rstd))
    dx = ((g - mean_g - xg * mean_gx) * rstd).reshape(x.shape)
    positions = tuple(range(x.ndim - 1))
    return dx if add is None else dx + add, precise_sum(dz * xhat, positions), precise_sum(dz, positions)
