"""SiLU, GELU, GEGLU, addition, sums that undo broadcasting, embedding."""

import numpy as np
import pytest
from against_torch import check, check_nan
from kernel_cases import add, embedding, geglu, gelu, silu, sum_to

CASES = [
    silu(1),
    silu(7),
    silu(2, 5, 7, 3),
    silu(3, 1000, scale=10.0),
    silu(4, 33, 17, scale=100.0),  # exp of these inputs would overflow
    gelu(1),
    gelu(7),
    gelu(2, 5, 7, 3),
    gelu(3, 1000, scale=10.0),
    gelu(4, 33, 17, scale=100.0),
    geglu(2),
    geglu(3, 14),
    geglu(2, 5, 7, 6),
    geglu(3, 1000, scale=10.0),
    geglu(4, 33, 34, scale=100.0),
    add(1),
    add(13),
    add(2, 5, 7, 3),
    add(1, 1, 1, 64),
    add(3, 8, 9, 33),
    sum_to((), (5,), offset=1.0),
    sum_to((1,), (64,), offset=1.0),
    sum_to((1,), (1,)),
    sum_to((3,), (2, 5, 7, 3)),
    sum_to((17,), (1, 17)),
    sum_to((4, 1, 1, 5), (4, 7, 3, 5)),
    sum_to((1, 1, 1, 1), (2, 3, 4, 5), offset=1.0),  # a single sum must not cancel to near zero
    sum_to((2, 1, 4, 1), (2, 3, 4, 5)),
    sum_to((1, 3, 1, 5), (2, 3, 4, 5)),
    sum_to((3, 1), (2, 3, 4)),
    sum_to((2, 3), (2, 3)),
    sum_to((8,), (20000, 8)),  # long sums
    sum_to((8,), (4096, 8), offset=10.0),  # whose terms do not cancel
    sum_to((1,), (20000,), offset=1.0),
    embedding(1, 1, 1),
    embedding(5, 8, 4),
    embedding(3, 17, 100),  # rows used many times
    embedding(11, 64, 33, np.int32),
    embedding(1000, 5, 7),  # most rows unused
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_elementwise_equals_torch(backend, case):
    check(backend, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_elementwise_propagates_nan(backend, case):
    check_nan(backend, case)


@pytest.mark.parametrize("x, y", [(0.0, 0.0), (-90.0, 0.0), (-1e30, 0.0), (90.0, 90.0), (1e30, 1e30), (np.inf, np.inf)])
def test_silu_of_large_inputs(backend, x, y):
    """No overflow (a RuntimeWarning is an error in tests); -90 sigmoid(-90) = -7e-38 may be zero."""
    assert backend.to_numpy(backend.silu(backend.asarray([x])))[0] == pytest.approx(y, abs=1e-37)
