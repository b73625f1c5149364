"""One step of Muon on a matrix, and the orthogonalisation."""

import math

import numpy as np
import pytest
from against_torch import check, check_nan, draw
from kernel_cases import muon
from minidiff_kernels.reference.muon import orthogonalize

CASES = [
    muon((1, 1)),
    muon((3, 7), ema_decay=None),
    muon((32, 288)),  # a convolution's
    muon((96, 32), weight_decay=0.0),  # more rows than columns
    muon((64, 64), clip=0.5),
    muon((20, 50), clip=1e9),  # too large to clip anything
    muon((13, 100), g=1e-6),
    muon((5, 40), (64, 20), (3, 3), (40, 33)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_muon_equals_torch(backend, case):
    check(backend, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_muon_propagates_nan(backend, case):
    check_nan(backend, case)


def test_orthogonalize_brings_the_singular_values_near_one():
    """The singular vectors stay; values down to a thousandth of the norm, squared sums, come to 0.68 to 1.13."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((50, 8)))[0] for _ in range(2))
    s = np.geomspace(1, 1e-2, 8)
    got = u.T @ orthogonalize(u * s @ v.T) @ v  # (8, 8)
    assert np.abs(got - np.diag(np.diag(got))).max() < 1e-12
    assert 0.68 < np.diag(got).min() and np.diag(got).max() < 1.14


@pytest.mark.parametrize("norm", [math.nan, math.inf])
@pytest.mark.parametrize("ema", [True, False])
def test_a_norm_that_is_not_finite_changes_nothing(backend, norm, ema):
    p, g, m, average = arrays = [backend.asarray(draw(12, seed=i)) for i in range(4)]
    g[7] = norm
    before = [backend.to_numpy(a).copy() for a in arrays]
    step(backend, p, g, m, average if ema else None)
    for a, same in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(a), same)


def test_a_gradient_of_zero_gives_no_update(backend):
    """No division by its norm of 0."""
    p, g, m = (backend.asarray(a) for a in (draw(12), np.zeros(12), np.zeros(12)))
    before = backend.to_numpy(p).copy()
    step(backend, p, g, m, None)
    np.testing.assert_array_equal(backend.to_numpy(p), before)


def step(backend, p, g, m, ema):
    """A step on buffers that are one matrix (3, 4)."""
    backend.muon(p, g, m, ema, np.array([(0, 3, 4)]), backend.grad_norm(g), 1.0, 0.1, 0.9, 0.0, 0.9)
