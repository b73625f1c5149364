"""Results are the same to the bit, run after run and whatever the number of threads."""

import numba
import numpy as np
import pytest
from against_torch import run_ours
from kernel_cases import adamw, add, attend, concat, conv, embedding, grad_norm, norm, silu, sum_to, upsample

from minidiff.engine.backend import get_backend

CASES = [
    conv((3, 16, 15, 32), (48, 3, 3, 32), pad=(1, 1, 1, 1), add="temb"),
    conv((8, 16, 15, 12), (20, 3, 3, 12), pad=(1, 1, 1, 1), add="residual"),
    conv((8, 16, 16, 32), (32, 3, 3, 32), stride=2, pad=(0, 1, 0, 1)),
    conv((1, 1, 4000, 32), (40, 1, 1, 32)),
    norm((5, 16, 16, 24), 8, silu=True),
    attend(3, 100, 77, 2, 16),
    silu(50_000),
    add(50_000),
    sum_to((7,), (9999, 7)),
    sum_to((5, 1, 1, 7), (5, 33, 31, 7)),
    embedding(11, 64, 500),
    upsample(3, 16, 16, 17),
    concat(3, 16, 16, channels=(17, 16)),
    grad_norm(100_003),
    adamw(100_003),
]


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads to compare with one")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_do_not_depend_on_threads(case):
    backend = get_backend("numba")
    results = []
    for threads in (1, numba.config.NUMBA_NUM_THREADS, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(threads)
        results.append(run_ours(backend, case, case.inputs))
    for k, a in results[0].items():
        for again in results[1:]:
            np.testing.assert_array_equal(again[k], a, f"{case}: {k}")
