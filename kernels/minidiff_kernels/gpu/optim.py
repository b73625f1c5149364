"""AdamW over flat buffers: clipping, decay, update and moving average in one pass over memory."""

import numpy as np

from .launch import blocks_of, cp, launch

PARTS = 512  # that a sum over all parameters is cut into at most


def grad_norm(g):
    """The Euclidean norm of all gradients together, summed in float64; g (P,). It stays on the GPU."""
    count = min(PARTS, blocks_of(g.size, 256))
    parts, norm = cp.empty(count, np.float64), cp.empty((), np.float64)
    launch("optim", "sum_of_squares", count, 256, g, parts, g.size)
    launch("optim", "root_of_sum", 1, 256, parts, norm, count)
    return norm


def adamw(p, g, m, v, ema, norm, clip, lr, beta1, beta2, eps, weight_decay, step, ema_decay):
    """One step of AdamW, in place; the equations stand in the reference."""
    rates = (
        1 - lr * weight_decay, 1 - beta1, 1 - beta2,
        lr / (1 - beta1**step), (1 - beta2**step) ** -0.5, eps, 1 - ema_decay,
    )  # fmt: skip
    norm = cp.asarray(norm, np.float64)
    launch(
        "optim", "adamw", blocks_of(p.size, 256), 256, p, g, m, v, ema, norm, p.size, float(clip), *map(float, rates)
    )
