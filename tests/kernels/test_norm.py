"""Group normalisation with and without SiLU, and layer normalisation as its special case."""

import numpy as np
import pytest
from against_torch import check, check_nan, run_ours
from kernel_cases import norm
from minidiff_kernels.cpu import norm as cpu_norm

from minidiff.engine.backend import get_backend

CASES = [
    norm((1, 1, 1, 8), 1),
    norm((1, 1, 1, 8), 8),  # a group of one element, equal to its mean
    norm((2, 1, 1, 64), 8, silu=True),
    norm((3, 4, 4, 1), 1),
    norm((2, 5, 7, 3), 1),
    norm((2, 5, 7, 3), 3, silu=True),
    norm((1, 7, 3, 5), 5),
    norm((2, 3, 8, 5), 1, silu=True),
    norm((2, 8, 8, 8), 4),
    norm((2, 8, 8, 8), 8, silu=True),
    norm((1, 5, 4, 17), 17, silu=True),
    norm((2, 6, 5, 17), 1),
    norm((2, 4, 9, 32), 8),
    norm((2, 4, 9, 32), 32, silu=True, eps=1e-6),
    norm((3, 5, 5, 33), 11),
    norm((3, 5, 5, 33), 3, silu=True),
    norm((1, 16, 8, 64), 2),
    norm((1, 16, 8, 64), 32, silu=True, eps=1e-6),
    norm((2, 8, 8, 96), 8, silu=True),
    norm((2, 32, 32, 32), 8, silu=True),
    norm((2, 9, 16), 4),  # (N, T, C)
    norm((5, 12), 3),  # (N, C)
    norm((7, 1, 33), 1),  # layer normalisation
    norm((64, 1, 64), 1, eps=1e-6),
    norm((1, 48), 1),  # (N, C), a single row
    norm((1037, 1, 96), 1),  # more chunks of rows than tasks, and a remainder
    norm((300, 1, 1, 32), 1, scale=1e-3),
    norm((2, 16, 16, 32), 8, offset=100.0),
    norm((2, 16, 16, 32), 8, silu=True, offset=-1000.0),
    norm((2, 8, 8, 16), 4, scale=1e-3),  # eps matters
    norm((2, 8, 8, 16), 4, silu=True, scale=1e4),
    norm((64, 1, 64), 1, offset=1000.0),
    norm((1, 32, 36, 48), 6, silu=True),
    norm((2, 32, 36, 96), 12),
    norm((16, 32, 32, 8), 4, silu=True),  # long sums over pixels
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_norm_equals_torch(backend, case):
    check(backend, case)


@pytest.mark.parametrize("case", CASES[:-1], ids=str)
def test_norm_propagates_nan(backend, case):
    check_nan(backend, case)


@pytest.mark.parametrize("case", [norm((2, 9, 7, 96), 12, silu=True), norm((3, 5, 6, 160), 32)], ids=str)
def test_several_tasks_an_image_give_the_same_bits(case, monkeypatch):
    backend = get_backend("numba")
    whole = run_ours(backend, case, case.inputs)
    monkeypatch.setattr(cpu_norm, "TASK_FLOATS", 1)
    for name, a in run_ours(backend, case, case.inputs).items():
        np.testing.assert_array_equal(a, whole[name], f"{case}: {name}")
