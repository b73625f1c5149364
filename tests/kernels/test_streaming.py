"""Stores past the caches write the same bits as plain ones, and only whole, aligned vectors."""

import numpy as np
import pytest
from against_torch import run_ours
from kernel_cases import add, concat, norm, silu, upsample
from minidiff_kernels.cpu import streaming

from minidiff.engine.backend import get_backend

CASES = [
    norm((3, 17, 19, 64), 8, silu=True),
    norm((2, 32, 36, 96), 12),
    norm((3, 17, 19, 33), 11, silu=True),  # no whole vectors
    silu(100_003),  # a remainder
    silu(13),  # below the pool's size, so not aligned
    add(100_003),
    upsample(3, 16, 16, 32),
    upsample(3, 16, 16, 17),
    concat(3, 32, 16, channels=(32, 64)),
    concat(3, 32, 16, channels=(33, 64)),
    concat(3, 32, 16, channels=(16, 1024)),
    concat(1, 3, 3, channels=(16, 1024)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_are_those_of_plain_stores(case, monkeypatch):
    backend = get_backend("numba")
    plain = {name: a.copy() for name, a in run_ours(backend, case, case.inputs).items()}
    monkeypatch.setattr(streaming, "PAST_CACHES", 0)
    for name, a in run_ours(backend, case, case.inputs).items():
        np.testing.assert_array_equal(a, plain[name], f"{case}: {name}")


def test_only_large_arrays_are_stored_past_the_caches():
    large = np.empty(streaming.PAST_CACHES // 8, np.float32)  # half of the limit
    assert streaming.exceed_caches(large, large)
    assert not streaming.exceed_caches(large)
    assert not streaming.exceed_caches(large, large, np.empty(16, np.float32))
