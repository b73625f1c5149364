"""Group normalisation with SiLU, one picture a thread: statistics, then everything else in one more pass.

Channels lie side by side in memory, so every inner loop runs over channels and sums are kept per channel;
groups are formed from C sums at the end. A picture of 32 x 32 x 64 is 256 KB: the second pass finds it in the
second-level cache. Sums run in float32 over CHUNK positions, and in float64 over chunks.
"""

import numpy as np
from numba import prange

from .jit import helper, kernel
from .memory import empty
from .simd import sigmoid

CHUNK = 64


def group_norm(x, weight, bias, groups, eps, silu=False):
    """y, mean, rstd: the output (x's shape) and what the backward pass needs (N, groups)."""
    N, C = len(x), x.shape[-1]
    y, mean, rstd = empty(x.shape), empty((N, groups)), empty((N, groups))
    _forward(x.reshape(N, -1, C), weight, bias, np.float64(eps), silu, y.reshape(N, -1, C), mean, rstd)
    return y, mean, rstd


def group_norm_backward(dy, x, weight, bias, mean, rstd, silu=False):
    """The gradients dx, dweight, dbias."""
    N, C = len(x), x.shape[-1]
    dx, sums = empty(x.shape), np.empty((N, 2, C))
    three = (N, -1, C)
    _backward(dy.reshape(three), x.reshape(three), weight, bias, mean, rstd, silu, dx.reshape(three), sums)
    dbias, dweight = sums.sum(0).astype(np.float32)
    return dx, dweight, dbias


@helper
def _mean_and_rstd(x, eps, mean, rstd):
    """Of one picture x (S, C), for every group, in two passes: E[(x - mean)^2] does not cancel."""
    (S, C), G = x.shape, len(mean)
    width = C // G
    centre, part = np.zeros(C, np.float32), np.empty(C, np.float32)
    for moment in range(2):
        total = np.zeros(C)
        for start in range(0, S, CHUNK):
            part[:] = 0
            for s in range(start, min(start + CHUNK, S)):
                if moment == 0:
                    for c in range(C):
                        part[c] += x[s, c]
                else:
                    for c in range(C):
                        part[c] += (x[s, c] - centre[c]) * (x[s, c] - centre[c])
            for c in range(C):
                total[c] += part[c]
        for g in range(G):
            average = total[g * width : (g + 1) * width].sum() / (S * width)
            if moment == 0:
                mean[g] = average
                centre[g * width : (g + 1) * width] = mean[g]
            else:
                rstd[g] = 1 / np.sqrt(average + eps)


@helper
def _by_channel(group_values, C):
    """The value of each channel's group, (C,)."""
    values, width = np.empty(C, np.float32), C // len(group_values)
    for c in range(C):
        values[c] = group_values[c // width]
    return values


@kernel
def _forward(x, weight, bias, eps, silu, y, mean, rstd):
    N, S, C = x.shape
    for n in prange(N):
        _mean_and_rstd(x[n], eps, mean[n], rstd[n])
        centre, scale = _by_channel(mean[n], C), _by_channel(rstd[n], C) * weight
        for s in range(S):
            if silu:
                for c in range(C):
                    z = (x[n, s, c] - centre[c]) * scale[c] + bias[c]
                    y[n, s, c] = z * sigmoid(z)
            else:
                for c in range(C):
                    y[n, s, c] = (x[n, s, c] - centre[c]) * scale[c] + bias[c]


@kernel
def _backward(dy, x, weight, bias, mean, rstd, silu, dx, sums):
    """dx, and sums[n] = (sum of dz, sum of dz xhat) over the positions of picture n, by channel."""
    N, S, C = x.shape
    G = mean.shape[1]
    width = C // G
    for n in prange(N):
        centre, scale = _by_channel(mean[n], C), _by_channel(rstd[n], C)
        sum_dz, sum_dzx = sums[n, 0], sums[n, 1]
        _sums_of_dz(dy[n], x[n], weight, bias, centre, scale, silu, dx[n], sum_dz, sum_dzx)
        # dx = rstd (dz weight - mean_g - xhat mean_gx), the means taken over a group: see the reference
        mean_g, mean_gx = np.empty(C, np.float32), np.empty(C, np.float32)
        for g in range(G):
            a = slice(g * width, (g + 1) * width)
            mean_g[a] = (sum_dz[a] * weight[a]).sum() / (S * width)
            mean_gx[a] = (sum_dzx[a] * weight[a]).sum() / (S * width)
        for s in range(S):
            for c in range(C):
                xhat = (x[n, s, c] - centre[c]) * scale[c]
                dx[n, s, c] = scale[c] * (dx[n, s, c] * weight[c] - mean_g[c] - xhat * mean_gx[c])


@helper
def _sums_of_dz(dy, x, weight, bias, centre, scale, silu, dz, sum_dz, sum_dzx):
    """dz (S, C), and its sums over positions, alone and times xhat."""
    S, C = x.shape
    part, part_x = np.empty(C, np.float32), np.empty(C, np.float32)
    one = np.float32(1)
    sum_dz[:] = 0
    sum_dzx[:] = 0
    for start in range(0, S, CHUNK):
        part[:] = 0
        part_x[:] = 0
        for s in range(start, min(start + CHUNK, S)):
            if silu:
                for c in range(C):
                    z = (x[s, c] - centre[c]) * scale[c] * weight[c] + bias[c]
                    sig = sigmoid(z)
                    dz[s, c] = dy[s, c] * sig * (one + z * (one - sig))
            else:
                for c in range(C):
                    dz[s, c] = dy[s, c]
            for c in range(C):
                part[c] += dz[s, c]
                part_x[c] += dz[s, c] * (x[s, c] - centre[c]) * scale[c]
        for c in range(C):
            sum_dz[c] += part[c]
            sum_dzx[c] += part_x[c]
