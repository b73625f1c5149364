"""AdamW over flat buffers: gradient clipping, weight decay, update and EMA in one pass over memory."""

import numpy as np
from numba import prange

from .jit import kernel
from .simd import LANES

CHUNK = 1 << 14  # terms of a partial sum; the partial sums are added in a fixed order


def grad_norm(g):
    """The Euclidean norm of all gradients together, summed in float64; g (P,)."""
    partial_sums = np.zeros(-(-len(g) // CHUNK))  # for adamw's sake in a dry run, where no kernel writes them
    _sums_of_squares(g, partial_sums)
    return np.sqrt(partial_sums.sum())


def adamw(p, g, m, v, ema, norm, clip, lr, beta1, beta2, eps, weight_decay, step, ema_decay):
    """One step of AdamW, in place; equations in reference/optim.py."""
    if not np.isfinite(norm):
        return
    f = np.float32
    scale = f(min(1.0, clip / (norm + 1e-6)))
    rates = (
        f(1 - lr * weight_decay), f(1 - beta1), f(1 - beta2),
        f(lr / (1 - beta1**step)), f((1 - beta2**step) ** -0.5), f(eps), f(1 - ema_decay),
    )  # fmt: skip
    _adamw(p, g, m, v, p if ema is None else ema, scale, rates)  # without an EMA, p is averaged with itself: no change


@kernel
def _sums_of_squares(g, partial_sums):
    for i in prange(len(partial_sums)):
        start, stop = np.int64(i) * CHUNK, min((np.int64(i) + 1) * CHUNK, len(g))
        totals = np.zeros(LANES)  # independent sums, so that additions do not wait for each other
        for j in range(start, stop - LANES + 1, LANES):
            for lane in range(LANES):
                totals[lane] += np.float64(g[j + lane]) * np.float64(g[j + lane])
        for j in range(stop - (stop - start) % LANES, stop):
            totals[0] += np.float64(g[j]) * np.float64(g[j])
        partial_sums[i] = totals.sum()


@kernel
def _adamw(p, g, m, v, ema, scale, rates):
    keep, new_m, new_v, rate, unbias_v, eps, new_ema = rates
    for i in prange(len(p)):
        gi = g[i] * scale
        m[i] += new_m * (gi - m[i])
        v[i] += new_v * (gi * gi - v[i])
        p[i] = p[i] * keep - rate * m[i] / (np.sqrt(v[i]) * unbias_v + eps)
        ema[i] += new_ema * (p[i] - ema[i])
