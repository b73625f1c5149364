"""Attention, first rung: the whole T x S matrix of probabilities, kept for the backward pass.

p = softmax(q k^T / sqrt(D))      o = p v
dv = p^T do      ds = p (do v^T - do . o)      dq = ds k / sqrt(D)      dk = ds^T q / sqrt(D)
"""

import numpy as np


def attention(do, q, k, v):
    """The output and all gradients, by name; do, q (N, T, heads, D), k, v (N, S, heads, D)."""
    scale = q.dtype.type(q.shape[3] ** -0.5)
    do, q, k, v = (a.transpose(0, 2, 1, 3) for a in (do, q, k, v))  # (N, heads, T or S, D)
    s = (q * scale) @ k.mT  # (N, heads, T, S)
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    o = p @ v
    ds = p * (do @ v.mT - (do * o).sum(-1, keepdims=True))
    gradients = {"dq": ds @ k * scale, "dk": ds.mT @ q * scale, "dv": p.mT @ do}
    return {name: np.ascontiguousarray(a.transpose(0, 2, 1, 3)) for name, a in ({"o": o} | gradients).items()}
