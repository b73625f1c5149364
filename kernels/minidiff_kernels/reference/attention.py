"""Scaled dot-product attention over several heads (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).

    s = q k^T / sqrt(D)      p = softmax(s) over the keys      o = p v

q, o (N, T, heads, D)   k, v (N, S, heads, D)   lse (N, heads, T): log of the sum of exp(s) over the keys
lse is all that the backward pass needs to have p again: p = exp(s - lse) (Dao et al. 2022, arXiv:2205.14135).
causal: query t sees the keys up to t alone, as if the others' s were -inf.
"""

import numpy as np


def scores(q, k, causal=False):
    """s (N, heads, T, S)."""
    s = np.einsum("nthd,nshd->nhts", q, k, optimize=True) * q.dtype.type(q.shape[-1] ** -0.5)
    return np.where(np.tri(*s.shape[2:], dtype=bool), s, -np.inf).astype(s.dtype) if causal else s


def attention(q, k, v, causal=False):
    """o, lse."""
    s = scores(q, k, causal)
    largest = s.max(-1, keepdims=True)  # subtracted so that exp cannot overflow
    p = np.exp(s - largest)
    total = p.sum(-1, keepdims=True)
    o = np.einsum("nhts,nshd->nthd", p / total, v, optimize=True)
    return np.ascontiguousarray(o), (largest + np.log(total))[..., 0]


def attention_backward(do, q, k, v, o, lse, causal=False):
    """The gradients dq, dk, dv.

        dv = p^T do      dp = do v^T      ds = p (dp - delta)      dq = ds k / sqrt(D)      dk = ds^T q / sqrt(D)

    delta[t] = sum over s of p dp = do[t] . o[t]: the softmax's own Jacobian, without forming it.
    """
    p = np.exp(scores(q, k, causal) - lse[..., None])  # (N, heads, T, S)
    dp = np.einsum("nthd,nshd->nhts", do, v, optimize=True)
    delta = np.einsum("nthd,nthd->nht", do, o)[..., None]
    ds = p * (dp - delta) * q.dtype.type(q.shape[-1] ** -0.5)
    dq = np.einsum("nhts,nshd->nthd", ds, k, optimize=True)
    dk = np.einsum("nhts,nthd->nshd", ds, q, optimize=True)
    dv = np.einsum("nhts,nthd->nshd", p, do, optimize=True)
    return np.ascontiguousarray(dq), np.ascontiguousarray(dk), np.ascontiguousarray(dv)
