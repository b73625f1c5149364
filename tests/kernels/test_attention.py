"""Scaled dot-product attention over one and several heads, as many keys as queries or not."""

import pytest
from against_torch import check, check_nan
from kernel_cases import attend

CASES = [
    attend(1, 1, 1, 1, 1),
    attend(1, 1, 1, 1, 8),  # one key: the softmax is 1, and the scores do not matter
    attend(2, 1, 5, 1, 8),
    attend(2, 7, 1, 3, 8),
    attend(64, 9, 9, 1, 1),  # 64 images: the rms of the nine values of one is a matter of chance
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
    attend(2, 1, 1, 2, 8, causal=True),
    attend(2, 7, 7, 3, 8, causal=True),
    attend(1, 77, 77, 2, 64, causal=True),
    attend(1, 130, 130, 2, 17, causal=True),  # more than one block of queries
    attend(2, 33, 20, 1, 5, causal=True),
    attend(2, 20, 33, 2, 5, causal=True),
    attend(2, 40, 40, 2, 8, scale=1000.0, causal=True),
    attend(4, 130, 77, 4, 17, scale=1000.0),  # exp of these scores would overflow; rows enough to average near ties
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_equals_torch(backend, case):
    check(backend, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_carries_nan(backend, case):
    check_nan(backend, case)
