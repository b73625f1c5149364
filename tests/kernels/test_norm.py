"""Group normalisation with and without SiLU, and layer normalisation as its special case."""

import numpy as np
import pytest
from against_torch import check, check_nan, draw, run_ours
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


@pytest.mark.parametrize("shape, groups, silu", [((2, 40, 24, 96), 8, True), ((3, 7, 5, 33), 11, False)])
def test_parts_of_an_image_have_its_bits(shape, groups, silu):
    """Rows are normalised from the statistics of the image."""
    backend = get_backend("numba")
    x, weight, bias = draw(*shape), draw(shape[-1], offset=1), draw(shape[-1], seed=2)
    y, mean, rstd = backend.group_norm(x, weight, bias, groups, 1e-5, silu)
    alone = backend.group_statistics(x, groups, 1e-5)
    parts = [backend.normalise(x[1:2, a:b], weight, bias, mean[1:2], rstd[1:2], silu) for a, b in ((0, 3), (3, None))]
    for got, want in ((np.concatenate(parts, 1), y[1:2]), (alone[0], mean), (alone[1], rstd)):
        np.testing.assert_array_equal(got, want)
