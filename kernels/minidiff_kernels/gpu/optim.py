"""AdamW over flat buffers: gradient clipping, weight decay, update and EMA in one pass over memory."""

import numpy as np

from .launch import ceil_div, cp, launch

MAX_PARTS = 512  # of the sum over all parameters


def grad_norm(g):
    """The Euclidean norm of all gradients together, summed in float64; g (P,). It stays on the GPU."""
    count = min(MAX_PARTS, ceil_div(g.size, 256))
    parts, norm = cp.empty(count, np.float64), cp.empty((), np.float64)
    launch("optim", "sum_of_squares", count, 256, g, parts, g.size)
    launch("optim", "root_of_sum", 1, 256, parts, norm, count)
    return norm


def adamw(p, g, m, v, ema, norm, clip, lr, beta1, beta2, eps, weight_decay, step, ema_decay):
    """One step of AdamW, in place; equations in reference/optim.py."""
    rates = (
        1 - lr * weight_decay, 1 - beta1, 1 - beta2,
        lr / (1 - beta1**step), (1 - beta2**step) ** -0.5, eps, 1 - ema_decay,
    )  # fmt: skip
    norm = cp.asarray(norm, np.float64)
    launch("optim", "adamw", ceil_div(p.size, 256), 256, p, g, m, v, ema, norm, p.size, float(clip), *map(float, rates))
