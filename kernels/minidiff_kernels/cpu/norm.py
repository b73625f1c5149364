"""Group normalisation with SiLU, one picture a thread: statistics, then everything else in one more pass.

Channels lie side by side in memory, so a vector is LANES channels of one position and sums are kept per channel;
groups are formed from C sums at the end. Layer normalisation, one position with one group, has nothing of that and goes
its own way (layer_norm.py). A picture of 32 x 32 x 64 is 256 KB: the second pass finds it in the
second-level cache, and asks it for the next picture meanwhile. Sums run in float32 over CHUNK positions, and in
float64 over chunks.

Helpers work on channels `first` to `last`: on LANES of them at a time, or on one, where C is no multiple of LANES and
some are left. Which of the two, the argument `zero` tells: a vector of zeros, or the number.
"""

import numpy as np
from numba import prange

from . import layer_norm
from .exponential import sigmoid
from .jit import helper, kernel
from .memory import empty
from .simd import LANES, expect, put, take, zeros

CHUNK = 16
zero = np.float32(0)


def group_norm(x, weight, bias, groups, eps, silu=False):
    """y, mean, rstd: the output (x's shape) and what the backward pass needs (N, groups)."""
    if layer_norm.fits(x.shape, groups, silu):
        return layer_norm.layer_norm(x, weight, bias, eps)
    N, C = len(x), x.shape[-1]
    y, mean, rstd = empty(x.shape), empty((N, groups)), empty((N, groups))
    _forward(x.reshape(N, -1, C), weight, bias, np.float64(eps), silu, y.reshape(N, -1, C), mean, rstd)
    return y, mean, rstd


def group_norm_backward(dy, x, weight, bias, mean, rstd, silu=False):
    """The gradients dx, dweight, dbias."""
    if layer_norm.fits(x.shape, mean.shape[1], silu):
        return layer_norm.layer_norm_backward(dy, x, weight, mean, rstd)
    N, C = len(x), x.shape[-1]
    dx, sums = empty(x.shape), np.empty((N, 2, C))
    three = (N, -1, C)
    _backward(dy.reshape(three), x.reshape(three), weight, bias, mean, rstd, silu, dx.reshape(three), sums)
    dbias, dweight = sums.sum(0).astype(np.float32)
    return dx, dweight, dbias


@helper
def _sum_rows(x, at, rows, first, last, step, centre, squared, part, zero):
    """part = the sum over rows, from x[at] on, of x - centre or of its square."""
    C = len(centre)
    for c in range(first, last, step):
        total, middle = zero, take(centre, c, zero)
        for i in range(at + c, at + rows * C, C):
            off = take(x, i, zero) - middle
            total = total + (off * off if squared else off)
        put(part, c, total)


@helper
def _mean_and_rstd(x, start, S, eps, mean, rstd, centre):
    """Of the picture (S, C) at x[start], for every group, in two passes: E[(x - mean)^2] does not cancel.

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
    """y = z, or silu(z), where z = (x - centre) scale + bias, of the picture (S, C) at x[start]."""
    C = len(centre)
    for at in range(start, start + S * C, C):
        for c in range(first, last, step):
            expect(x, at + c + S * C)
            z = (take(x, at + c, zero) - take(centre, c, zero)) * take(scale, c, zero) + take(bias, c, zero)
            put(y, at + c, z * sigmoid(z) if silu else z)


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
    """dz, the gradient of z in y = silu(z), z = xhat weight + bias; its sums over rows, alone and times xhat."""
    C, one = len(centre), np.float32(1)
    for c in range(first, last, step):
        middle, rstd = take(centre, c, zero), take(scale, c, zero)
        gain, shift = take(weight, c, zero), take(bias, c, zero)
        total, total_x = zero, zero
        for i in range(at + c, at + rows * C, C):
            xhat, gradient = (take(x, i, zero) - middle) * rstd, take(dy, i, zero)
            if silu:
                z = xhat * gain + shift
                sig = sigmoid(z)
                gradient = gradient * sig * (one + z * (one - sig))
            put(dz, i, gradient)
            total, total_x = total + gradient, total_x + gradient * xhat
        put(part, c, total)
        put(part_x, c, total_x)


@helper
def _dx(dy, x, dx, start, S, first, last, step, centre, scale, weight, mean_g, mean_gx, zero):
    """dx = rstd (dz weight - mean_g - xhat mean_gx), the means taken over a group; dz lies where dx will."""
    C = len(centre)
    for at in range(start, start + S * C, C):
        for c in range(first, last, step):
            expect(x, at + c + S * C)
            expect(dy, at + c + S * C)
            rstd = take(scale, c, zero)
            xhat = (take(x, at + c, zero) - take(centre, c, zero)) * rstd
            own = take(dx, at + c, zero) * take(weight, c, zero)
            put(dx, at + c, rstd * (own - take(mean_g, c, zero) - xhat * take(mean_gx, c, zero)))


@kernel
def _backward(dy, x, weight, bias, mean, rstd, silu, dx, sums):
    """dx, and sums[n] = (sum of dz, sum of dz xhat) over the positions of picture n, by channel."""
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
