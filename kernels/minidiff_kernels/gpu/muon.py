"""Muon: momentum, orthogonalised by Newton-Schulz iterations, as the update of weight matrices in flat buffers.

The products are CuPy's: the matrices are small, and there are a few dozen of them.
"""

from ..reference.muon import COEFFICIENTS, ITERATIONS, RMS, TINY
from .launch import cp
from .optim import grad_norm


def muon(p, g, m, ema, matrices, norm, clip, lr, momentum, weight_decay, ema_decay):
    """One step of Muon, in place; equations in reference/muon.py. The host reads nothing back.

    A step that is skipped has gc = m, which keeps m, and rates of 0.
    """
    norm = cp.asarray(norm, cp.float64)
    finite = cp.isfinite(norm)
    scale = _if(finite, cp.minimum(1.0, clip / (norm + 1e-6)), 1)
    keep, rate, new_ema = _if(finite, 1 - lr * weight_decay, 1), _if(finite, lr, 0), _if(finite, 1 - ema_decay, 0)
    for first, O, K in matrices.tolist():
        place = slice(first, first + O * K)
        gc = cp.where(finite, g[place], m[place]) * scale
        m[place] += (1 - momentum) * (gc - m[place])
        n = m[place] + (1 - momentum) * (gc - m[place])
        p[place] *= keep
        p[place] -= rate * (RMS * max(O, K) ** 0.5) * orthogonalize(n.reshape(O, K)).ravel()
        if ema is not None:
            ema[place] += new_ema * (p[place] - ema[place])


def _if(condition, a, b):
    """a, or b where the condition is false, float32 on the GPU."""
    return cp.where(condition, a, b).astype(cp.float32)


def orthogonalize(x):
    """About U V^T of x = U S V^T, by Newton-Schulz iterations, as in the reference."""
    if len(x) > x.shape[1]:
        return orthogonalize(cp.ascontiguousarray(x.T)).T
    a, b, c = COEFFICIENTS
    x = x / cp.maximum(grad_norm(x.reshape(-1)), TINY).astype(x.dtype)
    identity = cp.eye(len(x), dtype=x.dtype)
    for _ in range(ITERATIONS):
        A = x @ x.T  # (O, O)
        x = (a * identity + b * A + c * A @ A) @ x
    return x
