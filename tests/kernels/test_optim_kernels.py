"""One step of AdamW over a flat buffer, and the gradient norm."""

import math

import numpy as np
import pytest
from against_torch import check, check_nan, draw
from kernel_cases import adamw, grad_norm

CASES = [
    grad_norm(1),
    grad_norm(7),
    grad_norm(1000, scale=1e-3),
    grad_norm(100_003),
    grad_norm(100_003, scale=1e18),  # squares that would overflow float32
    grad_norm(5000, scale=1e-25),  # or underflow to zero
    adamw(1),
    adamw(13, step=1),
    adamw(1000, ema_decay=None),
    adamw(1000, step=1000, weight_decay=0.0),
    adamw(1001, clip=1.0),
    adamw(1001, clip=1e9),  # too large to clip anything
    adamw(70_001, clip=0.5, ema_decay=0.9999, beta2=0.999),
    adamw(300, eps=0.1, g=1e-3),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_optim_equals_torch(backend, case):
    check(backend, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_optim_propagates_nan(backend, case):
    check_nan(backend, case)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
@pytest.mark.parametrize("ema", [True, False])
def test_a_norm_that_is_not_finite_changes_nothing(backend, norm, ema):
    """Overflowed gradients must skip the step."""
    p, g, m, v, average = arrays = [backend.asarray(draw(5, seed=i) ** 2) for i in range(5)]
    g[2] = norm
    before = [backend.to_numpy(a).copy() for a in arrays]
    backend.adamw(p, g, m, v, average if ema else None, backend.grad_norm(g), 1.0, 0.1, 0.9, 0.99, 1e-8, 0.0, 1, 0.9)
    for a, same in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(a), same)
