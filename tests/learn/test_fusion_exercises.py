"""The solutions of chapter 17 add up to the reference's attention and its gradients."""

from functools import reduce

import numpy as np
import pytest
from minidiff_kernels.reference import attention as reference

from minidiff.learn.chapters.kernels import fusion as chapter

RNG = np.random.default_rng(0)
DO, Q = RNG.standard_normal((2, 7, 5))
K, V = RNG.standard_normal((2, 12, 5))


def state(keys):
    """The state of the online softmax over some keys."""
    s = Q @ K[keys].T / np.sqrt(5)
    p = np.exp(s - s.max(1, keepdims=True))
    return s.max(1), p.sum(1), p @ V[keys]


@pytest.fixture(scope="module")
def whole():
    """do, q, k, v, o, lse with the axes of images and heads."""
    do, q, k, v = (a[None, :, None] for a in (DO, Q, K, V))
    return do, q, k, v, *reference.attention(q, k, v)


@pytest.mark.parametrize("blocks", [(3, 12), (1, 2, 12), (4, 8, 12), (11, 12)], ids=str)
def test_online_softmax(whole, blocks):
    *_, o, lse = whole
    states = [state(slice(first, last)) for first, last in zip((0, *blocks), blocks, strict=False)]
    row_max, row_sum, out = reduce(chapter.combine, states)
    np.testing.assert_allclose(out / row_sum[:, None], o[0, :, 0], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(row_max + np.log(row_sum), lse[0, 0], rtol=1e-12)


def test_combination_starts_from_nothing():
    """The state over no keys, with a maximum of -inf, changes nothing."""
    nothing = np.full(7, -np.inf), np.zeros(7), np.zeros((7, 5))
    for ours, theirs in zip(chapter.combine(nothing, state(slice(12))), state(slice(12)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("side", [1, 3, 4, 12])
def test_backward_by_tiles(whole, side):
    do, q, k, v, o, lse = whole
    delta = (do * o).sum(-1)[0, :, 0]
    dq, dk, dv = np.zeros_like(Q), np.zeros_like(K), np.zeros_like(V)
    for t in range(0, 7, side):
        for s in range(0, 12, side):
            rows, keys = slice(t, t + side), slice(s, s + side)
            parts = chapter.attention_tile_backward(DO[rows], Q[rows], K[keys], V[keys], lse[0, 0, rows], delta[rows])
            dq[rows] += parts[0]
            dk[keys] += parts[1]
            dv[keys] += parts[2]
    for ours, theirs in zip((dq, dk, dv), reference.attention_backward(do, q, k, v, o, lse), strict=True):
        np.testing.assert_allclose(ours, theirs[0, :, 0], rtol=1e-11, atol=1e-13)
