"""Scaled dot-product attention with one or several heads, and equal or different numbers of queries and keys."""

import pytest
from against_torch import check, check_nan
from kernel_cases import attention

from minidiff.engine.backend import get_backend

CASES = [
    attention(1, 1, 1, 1, 1),
    attention(1, 1, 1, 1, 8),  # one key: the softmax is 1 whatever the score
    attention(2, 1, 5, 1, 8),
    attention(2, 7, 1, 3, 8),
    attention(64, 9, 9, 1, 1),  # 64 images: the rms of the nine values of one is a matter of chance
    attention(2, 16, 16, 1, 8),
    attention(2, 16, 16, 4, 8),
    attention(3, 4, 4, 2, 17),
    attention(1, 15, 33, 2, 17),
    attention(2, 65, 31, 1, 64),
    attention(2, 64, 64, 1, 96),
    attention(1, 130, 77, 5, 64),
    attention(1, 256, 256, 1, 64),
    attention(2, 50, 50, 8, 5),
    attention(2, 16, 16, 2, 8, scale=10.0),
    attention(2, 1, 1, 2, 8, causal=True),
    attention(2, 7, 7, 3, 8, causal=True),
    attention(1, 77, 77, 2, 64, causal=True),
    attention(1, 130, 130, 2, 17, causal=True),  # more than one block of queries
    attention(2, 33, 20, 1, 5, causal=True),
    attention(2, 20, 33, 2, 5, causal=True),
    attention(2, 40, 40, 2, 8, scale=1000.0, causal=True),
    attention(
        4, 130, 77, 4, 17, scale=1000.0
    ),  # exp of these scores would overflow; enough rows to average over near ties
]

# Too slow for the simulator of the GPU.
LARGE = [
    attention(1, 100, 600, 2, 40),  # three blocks of keys, of which each may raise the maximum
    attention(1, 100, 600, 2, 40, scale=100.0),
    attention(1, 256, 77, 8, 80),
    attention(1, 256, 77, 8, 160),
    attention(1, 1024, 1024, 2, 32),
    attention(1, 77, 77, 12, 64, causal=True),  # of a text encoder
    attention(1, 300, 300, 2, 32, causal=True),  # blocks of queries to which the last keys are masked
    attention(1, 100, 600, 1, 40, causal=True),
]
LONG = attention(1, 4096, 4096, 1, 40)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_equals_torch(backend, case):
    check(backend, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_propagates_nan(backend, case):
    check_nan(backend, case)


@pytest.mark.parametrize("case", [*LARGE, LONG], ids=str)
def test_large_attention_equals_torch(case):
    check(get_backend("numba"), case)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_attention_propagates_nan(case):
    check_nan(get_backend("numba"), case)
