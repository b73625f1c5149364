"""Attention, second rung: the library's kernel, a block of queries of one head at a time.

The scores of a block stay in L2. Only lse, the log-sum-exp of each query's scores, is kept; the backward pass
recomputes the probabilities from it (FlashAttention-2, Dao 2023, arXiv:2307.08691).
"""

from minidiff.engine.backend import get_backend

numba = get_backend("numba")


def attention(do, q, k, v):
    """The output and all gradients, by name; do, q (N, T, heads, D), k, v (N, S, heads, D)."""
    o, lse = numba.attention(q, k, v)
    dq, dk, dv = numba.attention_backward(do, q, k, v, o, lse)
    return {"o": o, "dq": dq, "dk": dk, "dv": dv}
