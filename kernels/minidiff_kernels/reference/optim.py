"""AdamW over flat buffers: gradient clipping, weight decay, update and moving average (EMA)."""

import numpy as np


def grad_norm(g):
    """The Euclidean norm of all gradients together, summed in float64; g (P,)."""
    return np.sqrt(np.square(g, dtype=np.float64).sum())


def adamw(p, g, m, v, ema, norm, clip, lr, beta1, beta2, eps, weight_decay, step, ema_decay):
    """One step of AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, alg. 2); p, m, v and ema change in place.

        p <- p (1 - lr weight_decay)
        m <- beta1 m + (1 - beta1) gc          v <- beta2 v + (1 - beta2) gc^2
        p <- p - lr mhat / (sqrt(vhat) + eps)  mhat = m / (1 - beta1^step), vhat = v / (1 - beta2^step)
        ema <- ema + (1 - ema_decay) (p - ema)

    Weight decay is multiplied by lr, as in PyTorch; alg. 2 multiplies it by the schedule multiplier only.
    gc = g min(1, clip / (norm + 1e-6)) is the clipped gradient (Pascanu et al. 2013); g is not changed. If norm is not
    finite, nothing is changed.
    p, g, m, v, ema (P,); ema may be None, clip may be inf; step counts from 1; norm is that of grad_norm.
    """
    if not np.isfinite(norm):
        return
    g = g * g.dtype.type(min(1.0, clip / (norm + 1e-6)))
    p *= 1 - lr * weight_decay
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    p -= lr / (1 - beta1**step) * m / (np.sqrt(v / (1 - beta2**step)) + eps)
    if ema is not None:
        ema += (1 - ema_decay) * (p - ema)
