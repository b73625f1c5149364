"""Group normalisation with SiLU. A task is one image, or some channels of a large one: whole groups, whole vectors.

In NHWC a vector is LANES channels of one position, so sums are kept per channel, and groups are formed from these sums
at the end. A task's values stay in L2 from the first pass to the last, and it prefetches those of the next task.
Sums run in float32 over CHUNK positions, in float64 over chunks. Layer normalisation is in layer_norm.py.

Helpers take channels `first` to `last` in steps of LANES, or one at a time for the remainder of C. Their argument
`zero` selects which: a vector of zeros, or a scalar.
"""

from math import lcm

import numpy as np
from numba import prange

from . import layer_norm
from .exponential import sigmoid
from .exponential import silu as silu_of
from .jit import helper, kernel
from .memory import empty
from .simd import LANES, load_like, prefetch_read, store_value, zeros
from .streaming import exceed_caches, store_result

CHUNK = 32  # positions summed in float32
ROWS = 256  # positions in a task, where the statistics are known
TASK_FLOATS = 32 * 1024  # x of a task: 128 KB of L2; backward holds x, dy and dz, and prefetches the next x and dy
zero = np.float32(0)


def group_norm(x, weight, bias, groups, eps, silu=False):
    """y, mean, rstd: the output (x's shape), and the statistics (N, groups) that the backward pass needs."""
    if layer_norm.supports(x.shape, groups, silu):
        return layer_norm.layer_norm(x, weight, bias, eps)
    N, C = len(x), x.shape[-1]
    y, mean, rstd = empty(x.shape), empty((N, groups)), empty((N, groups))
    x, y_ = x.reshape(N, -1, C), y.reshape(N, -1, C)
    settings = np.float64(eps), silu, _tasks(x.shape[1], C, groups), exceed_caches(x, y) and C % LANES == 0
    _forward(x, weight, bias, settings, y_, mean, rstd)
    return y, mean, rstd


def group_statistics(x, groups, eps):
    """mean and rstd (N, groups) alone, with the bits of `group_norm`'s."""
    N, C = len(x), x.shape[-1]
    mean, rstd, x = empty((N, groups)), empty((N, groups)), x.reshape(N, -1, C)
    _statistics(x, np.float64(eps), _tasks(x.shape[1], C, groups), mean, rstd)
    return mean, rstd


def normalise(x, weight, bias, mean, rstd, silu=False):
    """y from statistics that are known, with the bits of `group_norm`'s."""
    y, shape = empty(x.shape), (len(x), -1, x.shape[-1])
    _normalise_rows(x.reshape(shape), weight, bias, mean, rstd, silu, y.reshape(shape))
    return y


def group_norm_backward(dy, x, weight, bias, mean, rstd, silu=False, y=None, add=None):
    """The gradients dx + add, dweight, dbias; in y, which may be dy, the output once more."""
    N, C, groups = len(x), x.shape[-1], mean.shape[1]
    if y is None and layer_norm.supports(x.shape, groups, silu):
        return layer_norm.layer_norm_backward(dy, x, weight, mean, rstd, add)
    dx, sums = empty(x.shape), np.empty((N, 2, C))
    results = dx, dy if y is None else y, dx if add is None else add
    dy, x, *results = (a.reshape(N, -1, C) for a in (dy, x, *results))
    flags = silu, y is not None, add is not None
    settings = flags, _tasks(x.shape[1], C, groups), exceed_caches(dy, x, dx) and C % LANES == 0
    _backward(dy, x, (weight, bias, mean, rstd), settings, tuple(results), sums)
    dbias, dweight = sums.sum(0).astype(np.float32)
    return dx, dweight, dbias


def _tasks(S, C, groups) -> int:
    """The number of tasks of an image: the fewest of at most TASK_FLOATS values each, if its channels allow it."""
    unit = lcm(LANES, C // groups)
    fitting = (n for n in range(1, C // unit) if C % (n * unit) == 0 and S * C <= n * TASK_FLOATS)
    return next(fitting, C // unit if C % unit == 0 else 1)


@helper
def _place(task, tasks, S, C, G):
    """Of a task: image n, channels c0 to c1, groups g0 to g1, index of its first value, distance to the next task."""
    n, part, width = task // tasks, task % tasks, C // tasks
    ahead = width if part + 1 < tasks else S * C - part * width
    c0, g0 = part * width, part * (G // tasks)
    return n, c0, c0 + width, g0, g0 + G // tasks, n * S * C + c0, ahead


@helper
def _means(x, at, row, rows, first, last, step, means, zero):
    """means = the mean by channel of rows that are `row` apart, from x[at] on."""
    share = np.float32(1) / np.float32(rows)
    for c in range(first, last, step):
        total = zero
        for r in range(rows):
            total = total + load_like(x, at + r * row + c, zero)
        store_value(means, c, total * share)


@helper
def _deviations(x, at, row, rows, first, last, step, origin, sums, squares, zero):
    """sums, squares = the sums by channel of x - origin and of its square, over rows from x[at] on."""
    for c in range(first, last, step):
        middle, total, square = load_like(origin, c, zero), zero, zero
        for r in range(rows):
            off = load_like(x, at + r * row + c, zero) - middle
            total = total + off
            square = square + off * off
        store_value(sums, c, total)
        store_value(squares, c, square)


@helper
def _moments(x, at, row, S, channels):
    """Mean and variance of each channel over S rows from x[at] on, in float64.

    In one pass, from the distances to the mean of some rows spread over all, which is near theirs: E[off^2] - E[off]^2
    does not cancel then, as E[x^2] - mean^2 does.
    """
    whole, share, rows = channels // LANES * LANES, 1.0 / S, min(CHUNK, S)
    origin = np.empty(channels, np.float32)
    sums, squares = np.empty(channels, np.float32), np.empty(channels, np.float32)
    mean, variance = np.zeros(channels), np.zeros(channels)
    _means(x, at, S // rows * row, rows, 0, whole, LANES, origin, zeros())
    _means(x, at, S // rows * row, rows, whole, channels, 1, origin, zero)
    for s in range(0, S, CHUNK):
        here, rows = at + s * row, min(CHUNK, S - s)
        _deviations(x, here, row, rows, 0, whole, LANES, origin, sums, squares, zeros())
        _deviations(x, here, row, rows, whole, channels, 1, origin, sums, squares, zero)
        for c in range(channels):
            mean[c] += sums[c]
            variance[c] += squares[c]
    for c in range(channels):
        off = mean[c] * share
        mean[c] = origin[c] + off
        variance[c] = variance[c] * share - off * off
    return mean, variance


@helper
def _by_group(channel_mean, channel_variance, eps, mean, rstd):
    """mean and rstd of each group, from its channels' means and variances."""
    width = len(channel_mean) // len(mean)
    share = 1.0 / width
    for g in range(len(mean)):
        average, variance = 0.0, 0.0
        for c in range(width):
            average += channel_mean[g * width + c]
        average *= share
        for c in range(width):
            off = channel_mean[g * width + c] - average
            variance += channel_variance[g * width + c] + off * off
        mean[g], rstd[g] = average, 1 / np.sqrt(variance * share + eps)


@helper
def _by_channel(mean, rstd, weight):
    """The mean of each channel's group, and its rstd times weight."""
    centre, scale = np.empty(len(weight), np.float32), np.empty(len(weight), np.float32)
    width = len(weight) // len(mean)
    for g in range(len(mean)):
        for c in range(g * width, (g + 1) * width):
            centre[c], scale[c] = mean[g], rstd[g] * weight[c]
    return centre, scale


@helper
def _normalise(x, y, at, row, S, first, last, step, ahead, centre, scale, bias, silu, past_caches, zero):
    """y = z, or silu(z), where z = (x - centre) scale + bias, for S rows from x[at] on."""
    for i in range(at, at + S * row, row):
        for c in range(first, last, step):
            prefetch_read(x, i + c + ahead)
            off = load_like(x, i + c, zero) - load_like(centre, c, zero)
            z = off * load_like(scale, c, zero) + load_like(bias, c, zero)
            store_result(y, i + c, silu_of(z) if silu else z, past_caches)


@kernel
def _forward(x, weight, bias, settings, y, mean, rstd):
    (N, S, C), (eps, silu, tasks, past_caches), x, y = x.shape, settings, x.ravel(), y.ravel()
    for task in prange(N * tasks):
        n, c0, c1, g0, g1, at, ahead = _place(np.int64(task), tasks, S, C, mean.shape[1])
        means, variances = _moments(x, at, C, S, c1 - c0)
        _by_group(means, variances, eps, mean[n, g0:g1], rstd[n, g0:g1])
        centre, scale = _by_channel(mean[n, g0:g1], rstd[n, g0:g1], weight[c0:c1])
        shift, whole = bias[c0:c1], (c1 - c0) // LANES * LANES
        _normalise(x, y, at, C, S, 0, whole, LANES, ahead, centre, scale, shift, silu, past_caches, zeros())
        _normalise(x, y, at, C, S, whole, c1 - c0, 1, ahead, centre, scale, shift, silu, False, zero)


@kernel
def _statistics(x, eps, tasks, mean, rstd):
    (N, S, C), x = x.shape, x.ravel()
    for task in prange(N * tasks):
        n, c0, c1, g0, g1, at, _ = _place(np.int64(task), tasks, S, C, mean.shape[1])
        means, variances = _moments(x, at, C, S, c1 - c0)
        _by_group(means, variances, eps, mean[n, g0:g1], rstd[n, g0:g1])


@kernel
def _normalise_rows(x, weight, bias, mean, rstd, silu, y):
    (N, S, C), x, y = x.shape, x.ravel(), y.ravel()
    tasks, whole = (S + ROWS - 1) // ROWS, C // LANES * LANES
    for task in prange(N * tasks):
        n, part = divmod(np.int64(task), tasks)
        at, rows = (n * S + part * ROWS) * C, min(ROWS, S - part * ROWS)
        centre, scale = _by_channel(mean[n], rstd[n], weight)
        _normalise(x, y, at, C, rows, 0, whole, LANES, 0, centre, scale, bias, silu, False, zeros())
        _normalise(x, y, at, C, rows, whole, C, 1, 0, centre, scale, bias, silu, False, zero)


@helper
def _dz(dy, x, y, at, row, dz, to, rows, first, last, step, ahead, centre, scale, bias, flags, sums, zero):
    """dz at dz[to], where y = silu(z), z = (x - centre) scale + bias, for rows from x[at] on; y too, if restore.

    sums (2 channels) = the sums over these rows of dz, then of dz (x - centre).
    """
    channels, one, (silu, restore, _) = len(centre), np.float32(1), flags
    for c in range(first, last, step):
        mean, gain, shift = load_like(centre, c, zero), load_like(scale, c, zero), load_like(bias, c, zero)
        total, total_x = zero, zero
        for r in range(rows):
            i = at + r * row + c
            prefetch_read(x, i + ahead)
            prefetch_read(dy, i + ahead)
            off, gradient = load_like(x, i, zero) - mean, load_like(dy, i, zero)
            z = off * gain + shift
            if silu:
                s = sigmoid(z)
                gradient = gradient * s * (one + z * (one - s))
                z = z * s
            if restore:
                store_value(y, i, z)
            store_value(dz, to + r * channels + c, gradient)
            total, total_x = total + gradient, total_x + gradient * off
        store_value(sums, c, total)
        store_value(sums, channels + c, total_x)


@helper
def _sums(dy, x, y, at, row, S, dz, ahead, centre, scale, bias, flags, total, total_x):
    """dz (S, channels); total and total_x = the sums of dz and of dz (x - centre) over all rows."""
    channels, whole, sums = len(centre), len(centre) // LANES * LANES, np.empty(2 * len(centre), np.float32)
    total[:] = 0
    total_x[:] = 0
    for s in range(0, S, CHUNK):
        i, to, rows = at + s * row, s * channels, min(CHUNK, S - s)
        _dz(dy, x, y, i, row, dz, to, rows, 0, whole, LANES, ahead, centre, scale, bias, flags, sums, zeros())
        _dz(dy, x, y, i, row, dz, to, rows, whole, channels, 1, ahead, centre, scale, bias, flags, sums, zero)
        for c in range(channels):
            total[c] += sums[c]
            total_x[c] += sums[channels + c]


@helper
def _of_statistics(total, total_x, weight, rstd, count):
    """By channel: rstd^2 <g xhat> and rstd <g>, where g = dz weight; total_x becomes the sum of dz xhat."""
    of_x, constant = np.empty(len(weight), np.float32), np.empty(len(weight), np.float32)
    width = len(weight) // len(rstd)
    share = 1.0 / (count * width)
    for g in range(len(rstd)):
        sum_g, sum_gx = 0.0, 0.0
        for c in range(g * width, (g + 1) * width):
            total_x[c] *= rstd[g]
            sum_g += total[c] * weight[c]
            sum_gx += total_x[c] * weight[c]
        mean_g, mean_gx = sum_g * share * rstd[g], sum_gx * share * rstd[g] * rstd[g]
        for c in range(g * width, (g + 1) * width):
            of_x[c], constant[c] = mean_gx, mean_g
    return of_x, constant


@helper
def _dx(dz, x, dx, add, at, row, S, first, last, step, centre, scale, of_x, constant, flags, zero):
    """dx = dz scale - (x - centre) of_x - constant, plus add if `added`, for S rows from x[at] on; dz (S, channels)."""
    added, past_caches = flags
    for s in range(S):
        i, own = at + s * row, s * len(centre)
        for c in range(first, last, step):
            off = load_like(x, i + c, zero) - load_like(centre, c, zero)
            through_statistics = off * load_like(of_x, c, zero) + load_like(constant, c, zero)
            gradient = load_like(dz, own + c, zero) * load_like(scale, c, zero) - through_statistics
            if added:
                gradient = gradient + load_like(add, i + c, zero)
            store_result(dx, i + c, gradient, past_caches)


@kernel
def _backward(dy, x, of_forward, settings, results, sums):
    """dx + add, y if wanted, and sums[n] = (sum of dz, sum of dz xhat) over the positions of image n, by channel."""
    (N, S, C), (weight, bias, mean, rstd), (flags, tasks, past_caches) = x.shape, of_forward, settings
    (dx, y, add), dy, x = results, dy.ravel(), x.ravel()
    dx, y, add, added = dx.ravel(), y.ravel(), add.ravel(), flags[2]
    for task in prange(N * tasks):
        n, c0, c1, g0, g1, at, ahead = _place(np.int64(task), tasks, S, C, mean.shape[1])
        centre, scale = _by_channel(mean[n, g0:g1], rstd[n, g0:g1], weight[c0:c1])
        total, total_x, whole = sums[n, 0, c0:c1], sums[n, 1, c0:c1], (c1 - c0) // LANES * LANES
        dz = np.empty(S * (c1 - c0), np.float32)
        _sums(dy, x, y, at, C, S, dz, ahead, centre, scale, bias[c0:c1], flags, total, total_x)
        of_x, constant = _of_statistics(total, total_x, weight[c0:c1], rstd[n, g0:g1], S)
        vectors, rest = (added, past_caches), (added, False)
        _dx(dz, x, dx, add, at, C, S, 0, whole, LANES, centre, scale, of_x, constant, vectors, zeros())
        _dx(dz, x, dx, add, at, C, S, whole, c1 - c0, 1, centre, scale, of_x, constant, rest, zero)
