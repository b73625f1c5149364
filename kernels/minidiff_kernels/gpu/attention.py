"""Attention in tiles that stay on the multiprocessor (attention.cu), for head widths D up to 128.

Tiles of wider heads do not fit in shared memory: for them, unfused matrix products and softmax by CuPy.
"""

from .launch import ceil_div, cp, launch
from .memory import empty

WIDTHS = (32, 64, 128)


def attention(q, k, v, causal=False):
    """o, lse, as in the reference."""
    (N, T, heads, D), S = q.shape, k.shape[1]
    if D > WIDTHS[-1]:
        return _unfused(q, k, v, causal)
    o, lse = empty(q.shape), empty((N, heads, T))
    width, side = _tile_shape(D)
    launch(
        "attention", f"attention_{width}", (N * heads, ceil_div(T, side)), 256, q, k, v, o, lse, T, S, heads, D,
        D**-0.5, causal, shared=_shared_bytes(width, side, tiles=3, scores=1),
    )  # fmt: skip
    return o, lse


def attention_backward(do, q, k, v, o, lse, causal=False):
    """The gradients dq, dk, dv."""
    (N, T, heads, D), S = q.shape, k.shape[1]
    if D > WIDTHS[-1]:
        return _unfused_backward(do, q, k, v, o, lse, causal)
    dq, dk, dv, delta = empty(q.shape), empty(k.shape), empty(v.shape), empty(lse.shape)
    launch("attention", "attention_delta", (N * heads, ceil_div(T, 8)), 256, do, o, delta, T, heads, D)
    width, side = _tile_shape(D)
    rest = T, S, heads, D, D**-0.5, causal
    launch(
        "attention", f"attention_backward_q_{width}", (N * heads, ceil_div(T, side)), 256, do, q, k, v, lse, delta, dq,
        *rest, shared=_shared_bytes(width, side, tiles=4, scores=1),
    )  # fmt: skip
    launch(
        "attention", f"attention_backward_kv_{width}", (N * heads, ceil_div(S, side)), 256, do, q, k, v, lse, delta,
        dk, dv, *rest, shared=_shared_bytes(width, side, tiles=4, scores=2),
    )  # fmt: skip
    return dq, dk, dv


def _tile_shape(D):
    """Columns and rows of a tile for head width D."""
    width = next(width for width in WIDTHS if D <= width)
    return width, 64 if width == 32 else 32


def _shared_bytes(width, side, tiles, scores):
    """Bytes of shared memory of `tiles` tiles (side, width + 4) and `scores` tiles of scores (side, side + 4)."""
    return 4 * side * (tiles * (width + 4) + scores * (side + 4))


def _by_head(a):
    """(N, T, heads, D) as (N, heads, T, D)."""
    return cp.ascontiguousarray(a.transpose(0, 2, 1, 3))


def _scores(q, k, causal):
    """s (N, heads, T, S)."""
    s = cp.matmul(q, k.swapaxes(2, 3)) * q.dtype.type(q.shape[-1] ** -0.5)
    return cp.where(cp.tri(*s.shape[2:], dtype=bool), s, s.dtype.type("-inf")) if causal else s


def _unfused(q, k, v, causal):
    q, k, v = map(_by_head, (q, k, v))
    s = _scores(q, k, causal)
    row_max = s.max(-1, keepdims=True)
    p = cp.exp(s - row_max)
    row_sum = p.sum(-1, keepdims=True)
    return _by_head(cp.matmul(p / row_sum, v)), cp.ascontiguousarray((row_max + cp.log(row_sum))[..., 0])


def _unfused_backward(do, q, k, v, o, lse, causal):
    do, q, k, v, o = map(_by_head, (do, q, k, v, o))
    p = cp.exp(_scores(q, k, causal) - lse[..., None])  # (N, heads, T, S)
    dp, delta = cp.matmul(do, v.swapaxes(2, 3)), (do * o).sum(-1, keepdims=True)
    ds = p * (dp - delta) * q.dtype.type(q.shape[-1] ** -0.5)
    dq, dk, dv = cp.matmul(ds, k), cp.matmul(ds.swapaxes(2, 3), q), cp.matmul(p.swapaxes(2, 3), do)
    return _by_head(dq), _by_head(dk), _by_head(dv)
