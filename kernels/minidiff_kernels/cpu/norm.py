"""Group normalisation with SiLU, one image per task: two passes for the statistics, then one pass for all the rest.

In NHWC a vector is LANES channels of one position, so sums are kept per channel, and groups are formed from the C sums
at the end. An image of 32 x 32 x 64 is 256 KB: later passes find it in L2, and the last one prefetches the next image.
Sums run in float32 over CHUNK positions, in float64 over chunks. Layer normalisation is in layer_norm.py.

Helpers take channels `first` to `last` in steps of LANES, or one at a time for the remainder of C. Their argument
`zero` selects which: a vector of zeros, or a scalar.
"""

import numpy as np
from numba import prange

from . import layer_norm
from .exponential import sigmoid
from .jit import helper, kernel
from .memory import empty
from .simd import LANES, load_like, prefetch_read, store_value, zeros

CHUNK = 16  # positions summed in float32
zero = np.float32(0)


def group_norm(x, weight, bias, groups, eps, silu=False):
    """y, mean, rstd: the output (x's shape), and the statistics (N, groups) that the backward pass needs."""
    if layer_norm.supports(x.shape, groups, silu):
        return layer_norm.layer_norm(x, weight, bias, eps)
    N, C = len(x), x.shape[-1]
    y, mean, rstd = empty(x.shape), empty((N, groups)), empty((N, groups))
    _forward(x.reshape(N, -1, C), weight, bias, np.float64(eps), silu, y.reshape(N, -1, C), mean, rstd)
    return y, mean, rstd


def group_norm_backward(dy, x, weight, bias, mean, rstd, silu=False):
    """The gradients dx, dweight, dbias."""
    if layer_norm.supports(x.shape, mean.shape[1], silu):
        return layer_norm.layer_norm_backward(dy, x, weight, mean, rstd)
    N, C = len(x), x.shape[-1]
    dx, sums = empty(x.shape), np.empty((N, 2, C))
    dy, x, dx_ = (a.reshape(N, -1, C) for a in (dy, x, dx))
    _backward(dy, x, weight, bias, mean, rstd, silu, dx_, sums)
    dbias, dweight = sums.sum(0).astype(np.float32)
    return dx, dweight, dbias


@helper
def _sum_rows(x, at, rows, first, last, step, centre, squared, part, zero):
    """part = the sum of x - centre, or of its square, over rows (rows, C) at x[at]."""
    C = len(centre)
    for c in range(first, last, step):
        total, channel_centre = zero, load_like(centre, c, zero)
        for i in range(at + c, at + rows * C, C):
            difference = load_like(x, i, zero) - channel_centre
            total = total + (difference * difference if squared else difference)
        store_value(part, c, total)


@helper
def _mean_and_rstd(x, start, S, eps, mean, rstd, centre):
    """mean and rstd (G,) of the image (S, C) at x[start], in two passes: E[(x - mean)^2] has no cancellation.

    centre (C,) becomes the mean of each channel's group.
    """
    C, G = len(centre), len(mean)
    width, whole, part = C // G, C // LANES * LANES, np.empty(C, np.float32)
    centre[:] = 0
    for squared in (False, True):
        total = np.zeros(C)
        for s in range(0, S, CHUNK):
            at, rows = start + s * C, min(CHUNK, S - s)
            _sum_rows(x, at, rows, 0, whole, LANES, centre, squared, part, zeros())
            _sum_rows(x, at, rows, whole, C, 1, centre, squared, part, zero)
            for c in range(C):
                total[c] += part[c]
        for g in range(G):
            average = total[g * width : (g + 1) * width].sum() / (S * width)
            if squared:
                rstd[g] = 1 / np.sqrt(average + eps)
            else:
                mean[g] = average
                centre[g * width : (g + 1) * width] = mean[g]


@helper
def _by_channel(group_values, C):
    """The value of each channel's group, (C,)."""
    values, width = np.empty(C, np.float32), C // len(group_values)
    for c in range(C):
        values[c] = group_values[c // width]
    return values


@helper
def _normalise(x, y, start, S, first, last, step, centre, scale, bias, silu, zero):
    """y = z, or silu(z), where z = (x - centre) scale + bias, of the image (S, C) at x[start]."""
    C = len(centre)
    for at in range(start, start + S * C, C):
        for c in range(first, last, step):
            prefetch_read(x, at + c + S * C)  # the next image
            z = (load_like(x, at + c, zero) - load_like(centre, c, zero)) * load_like(scale, c, zero) + load_like(
                bias, c, zero
            )
            store_value(y, at + c, z * sigmoid(z) if silu else z)


@kernel
def _forward(x, weight, bias, eps, silu, y, mean, rstd):
    N, S, C = x.shape
    x, y, whole = x.ravel(), y.ravel(), C // LANES * LANES
    for n in prange(N):
        start, centre = np.int64(n) * S * C, np.empty(C, np.float32)
        _mean_and_rstd(x, start, S, eps, mean[n], rstd[n], centre)
        scale = _by_channel(rstd[n], C) * weight
        _normalise(x, y, start, S, 0, whole, LANES, centre, scale, bias, silu, zeros())
        _normalise(x, y, start, S, whole, C, 1, centre, scale, bias, silu, zero)


@helper
def _dz(dy, x, dz, at, rows, first, last, step, centre, scale, weight, bias, silu, part, part_x, zero):
    """dz, where y = silu(z), z = xhat weight + bias; part and part_x: the sums of dz and dz xhat over rows."""
    C, one = len(centre), np.float32(1)
    for c in range(first, last, step):
        mean, rstd = load_like(centre, c, zero), load_like(scale, c, zero)
        gain, shift = load_like(weight, c, zero), load_like(bias, c, zero)
        total, total_x = zero, zero
        for i in range(at + c, at + rows * C, C):
            xhat, gradient = (load_like(x, i, zero) - mean) * rstd, load_like(dy, i, zero)
            if silu:
                z = xhat * gain + shift
                sig = sigmoid(z)
                gradient = gradient * sig * (one + z * (one - sig))
            store_value(dz, i, gradient)
            total, total_x = total + gradient, total_x + gradient * xhat
        store_value(part, c, total)
        store_value(part_x, c, total_x)


@helper
def _dx(dy, x, dx, start, S, first, last, step, centre, scale, weight, mean_g, mean_gx, zero):
    """dx = rstd (dz weight - mean_g - xhat mean_gx), the means over a group; dz is read from dx and overwritten."""
    C = len(centre)
    for at in range(start, start + S * C, C):
        for c in range(first, last, step):
            prefetch_read(x, at + c + S * C)
            prefetch_read(dy, at + c + S * C)
            rstd = load_like(scale, c, zero)
            xhat = (load_like(x, at + c, zero) - load_like(centre, c, zero)) * rstd
            g = load_like(dx, at + c, zero) * load_like(weight, c, zero)
            store_value(dx, at + c, rstd * (g - load_like(mean_g, c, zero) - xhat * load_like(mean_gx, c, zero)))


@kernel
def _backward(dy, x, weight, bias, mean, rstd, silu, dx, sums):
    """dx, and sums[n] = (sum of dz, sum of dz xhat) over the positions of image n, by channel."""
    (N, S, C), G = x.shape, mean.shape[1]
    width, whole, dy, x, dx = C // G, C // LANES * LANES, dy.ravel(), x.ravel(), dx.ravel()
    for n in prange(N):
        start, centre, scale = np.int64(n) * S * C, _by_channel(mean[n], C), _by_channel(rstd[n], C)
        part, part_x = np.empty(C, np.float32), np.empty(C, np.float32)
        total, total_x = sums[n, 0], sums[n, 1]
        total[:] = 0
        total_x[:] = 0
        for s in range(0, S, CHUNK):
            at, rows = start + s * C, min(CHUNK, S - s)
            _dz(dy, x, dx, at, rows, 0, whole, LANES, centre, scale, weight, bias, silu, part, part_x, zeros())
            _dz(dy, x, dx, at, rows, whole, C, 1, centre, scale, weight, bias, silu, part, part_x, zero)
            for c in range(C):
                total[c] += part[c]
                total_x[c] += part_x[c]
        mean_g, mean_gx = np.empty(C, np.float32), np.empty(C, np.float32)
        for g in range(G):
            a = slice(g * width, (g + 1) * width)
            mean_g[a] = (total[a] * weight[a]).sum() / (S * width)
            mean_gx[a] = (total_x[a] * weight[a]).sum() / (S * width)
        _dx(dy, x, dx, start, S, 0, whole, LANES, centre, scale, weight, mean_g, mean_gx, zeros())
        _dx(dy, x, dx, start, S, whole, C, 1, centre, scale, weight, mean_g, mean_gx, zero)
