"""Widening of float16, exactly as NumPy's and torch's."""

import numpy as np
import pytest
from against_torch import check
from kernel_cases import pack, widen

CASES = [widen(1), widen(3, 5, 7), widen(9, 4097), pack(5, 3, 3, 7)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_torch(backend, case):
    check(backend, case)


def test_every_float16_is_widened_exactly(backend):
    """With signed zeros, the numbers below the normal range, infinities and NaN."""
    half = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    got = backend.to_numpy(backend.widen(backend.xp.asarray(half)))
    np.testing.assert_array_equal(got, half.astype(np.float32), strict=True)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(half))
