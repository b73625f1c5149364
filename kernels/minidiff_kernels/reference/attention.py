"""Scaled dot-product attention over several heads (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).

    s = q k^T / sqrt(D)      p = softmax(s) over the keys      o = p v

q, o (N, T, heads, D)   k, v (N, S, heads, D)   lse (N, heads, T)
lse = log(sum over the keys of exp(s)), the log-sum-exp of each row of s. The backward pass recomputes p = exp(s - lse)
from it, without a separate row maximum and row sum (FlashAttention-2, Dao 2023, arXiv:2307.08691, section 3.1).
causal: query t attends to the keys 0 ... t; s is -inf for all others.
"""

import numpy as np


def scores(q, k, causal=False):
    """s (N, heads, T, S)."""
    s = np.einsum("nthd,nshd->nhts", q, k, optimize=True) * q.dtype.type(q.shape[-1] ** -0.5)
    return np.where(np.tri(*s.shape[2:], dtype=bool), s, -np.inf).astype(s.dtype) if causal else s


def attention(q, k, v, causal=False):
    """o and lse."""
    s = scores(q, k, causal)
    row_max = s.max(-1, keepdims=True)  # subtracted so that exp cannot overflow
    p = np.exp(s - row_max)  # not yet normalised
    row_sum = p.sum(-1, keepdims=True)
    o = np.einsum("nhts,nshd->nthd", p / row_sum, v, optimize=True)
    return np.ascontiguousarray(o), (row_max + np.log(row_sum))[..., 0]


def attention_backward(do, q, k, v, o, lse, causal=False):
    """The gradients dq, dk, dv.

        dv = p^T do      dp = do v^T      ds = p (dp - delta)      dq = ds k / sqrt(D)      dk = ds^T q / sqrt(D)

    delta[t] = sum over the keys of p dp = do[t] . o[t] (D in FlashAttention), so the softmax's Jacobian is not formed.
    """
    p = np.exp(scores(q, k, causal) - lse[..., None])  # (N, heads, T, S)
    dp = np.einsum("nthd,nshd->nhts", do, v, optimize=True)
    delta = np.einsum("nthd,nthd->nht", do, o)[..., None]
    ds = p * (dp - delta) * q.dtype.type(q.shape[-1] ** -0.5)
    dq = np.einsum("nhts,nshd->nthd", ds, k, optimize=True)
    dk = np.einsum("nhts,nthd->nshd", ds, q, optimize=True)
    dv = np.einsum("nhts,nthd->nshd", p, do, optimize=True)
    return np.ascontiguousarray(dq), np.ascontiguousarray(dk), np.ascontiguousarray(dv)
