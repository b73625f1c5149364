"""Attention, second rung: the library's kernel, a block of queries of one head at a time.

The scores of a block stay in the second-level cache. Of each query only lse is kept, the log of its sum of
exponentials; the way back computes the probabilities again from it (Dao et al. 2022, arXiv:2205.14135).
"""

from minidiff.engine.backend import get_backend

numba = get_backend("numba")


def attention(do, q, k, v):
    """The output and all gradients, by name; do, q (N, T, heads, D), k, v (N, S, heads, D)."""
    o, lse = numba.attention(q, k, v)
    dq, dk, dv = numba.attention_backward(do, q, k, v, o, lse)
    return {"o": o, "dq": dq, "dk": dk, "dv": dv}
