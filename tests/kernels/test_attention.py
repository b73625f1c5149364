"""Scaled dot-product attention over one and several heads, as many keys as queries or not."""

import pytest
import torch
import torch.nn.functional as F
from against_torch import Case, check, check_nan, draw
from torch.nn.attention import SDPBackend, sdpa_kernel


def attend(N, T, S, heads, D, scale=1.0):
    """q (N, T, heads, D) times `scale`, k and v (N, S, heads, D)."""
    q, kv = (N, T, heads, D), (N, S, heads, D)
    inputs = {"do": draw(*q, seed=1), "q": draw(*q, scale=scale), "k": draw(*kv, seed=2), "v": draw(*kv, seed=3)}

    def ours(backend, do, q, k, v):
        o, lse = backend.attention(q, k, v)
        return {"o": o, "lse": lse} | dict(
            zip(("dq", "dk", "dv"), backend.attention_backward(do, q, k, v, o, lse), strict=True)
        )

    def theirs(do, q, k, v):
        leaves = [a.requires_grad_() for a in (q, k, v)]
        by_head = [a.transpose(1, 2) for a in leaves]  # (N, heads, T, D)
        fused = SDPBackend.FLASH_ATTENTION  # the rival; the truth comes from plain algebra, which keeps NaN
        with sdpa_kernel(fused if q.dtype == torch.float32 else SDPBackend.MATH):
            o = F.scaled_dot_product_attention(*by_head).transpose(1, 2)
        lse = (by_head[0] @ by_head[1].mT * D**-0.5).logsumexp(-1)
        gradients = zip(("dq", "dk", "dv"), torch.autograd.grad(o, leaves, do), strict=True)
        return {"o": o, "lse": lse, **dict(gradients)}

    return Case(f"N{N} T{T} S{S} heads{heads} D{D} x{scale}", inputs, ours, theirs)


CASES = [
    attend(1, 1, 1, 1, 1),
    attend(1, 1, 1, 1, 8),  # one key: the softmax is 1, and the scores do not matter
    attend(2, 1, 5, 1, 8),
    attend(2, 7, 1, 3, 8),
    attend(1, 9, 9, 1, 1),
    attend(2, 16, 16, 1, 8),
    attend(2, 16, 16, 4, 8),
    attend(3, 4, 4, 2, 17),
    attend(1, 15, 33, 2, 17),
    attend(2, 65, 31, 1, 64),
    attend(2, 64, 64, 1, 96),
    attend(1, 130, 77, 5, 64),
    attend(1, 256, 256, 1, 64),
    attend(2, 50, 50, 8, 5),
    attend(2, 16, 16, 2, 8, scale=10.0),
    attend(4, 130, 77, 4, 17, scale=1000.0),  # exp of these scores would overflow; rows enough to average near ties
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_equals_torch(backend, case):
    check(backend, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_carries_nan(backend, case):
    check_nan(backend, case)
