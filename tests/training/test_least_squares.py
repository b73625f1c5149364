"""Least squares of positive constants: against the exact solution of a linear problem, and what it refuses."""

import numpy as np
import pytest

from minidiff.training.forecast.least_squares import least_squares


def test_a_linear_problem():
    """The solution of the normal equations, from near and from far."""
    rng = np.random.default_rng(0)
    A, truth = rng.random((20, 3)), np.array([0.5, 2.0, 30.0])
    b = A @ truth + 0.01 * rng.standard_normal(20)
    for start in (truth * 1.1, np.ones(3)):
        found = least_squares(lambda constants: A @ constants - b, start)
        np.testing.assert_allclose(found, np.linalg.lstsq(A, b, rcond=None)[0], rtol=1e-4)


def test_no_constant_is_negative():
    """Where the least error is at a negative constant, the other one is the best for zero."""
    x = np.linspace(1, 2, 5)
    found = least_squares(lambda constants: constants[0] + constants[1] * x - (x - 0.5), [1.0, 1.0])
    assert found[0] == pytest.approx(0, abs=1e-3)
    assert found[1] == pytest.approx(x @ (x - 0.5) / (x @ x), rel=1e-3)


def test_the_start_is_kept_where_it_is_exact():
    x = np.linspace(1, 2, 5)
    np.testing.assert_allclose(least_squares(lambda constants: constants[0] * x - 2 * x, [2.0]), 2.0, rtol=1e-12)


def test_fewer_points_than_constants():
    with pytest.raises(ValueError, match="2 points: the law has 3 constants"):
        least_squares(lambda constants: constants[:2], [1.0, 1.0, 1.0])
