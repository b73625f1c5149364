"""The law: known constants come back from synthetic points, with and without noise, and its error is honest."""

from dataclasses import astuple, replace
from functools import partial

import numpy as np
import pytest

from minidiff.training.forecast.power_law import ProductLaw, SumLaw, fit_power_law, jackknife_errors, left_out

PRODUCT = ProductLaw(E=0.1, B=0.06, alpha=0.3, beta=0.55)
SUM = SumLaw(E=0.1, A=0.01, B=0.03, alpha=0.4, beta=0.6)
BOTH = pytest.mark.parametrize("true", [PRODUCT, SUM], ids=["product", "sum"])
N, D = (a.ravel() for a in np.meshgrid([1.7e5, 6.8e5, 2.7e6], 6400 * 2.0 ** np.arange(4)))  # as measured, 3 x 4


def noisy(true, error, seed):
    return true(N, D) * (1 + error * np.random.default_rng(seed).standard_normal(len(N)))


def test_the_laws_at_a_point():
    assert PRODUCT(1e6, 1e4) == pytest.approx(0.1 + 0.06)
    assert PRODUCT(4e6, 1e6) == pytest.approx(0.1 + 0.06 * 4**-0.3 * 100**-0.55)
    assert SUM(1e6, 1e4) == pytest.approx(0.1 + 0.01 + 0.03)
    assert SUM(1e9, 1e6) == pytest.approx(0.1 + 0.01 * 1000**-0.4 + 0.03 * 100**-0.6)


@BOTH
def test_the_constants_come_back_without_noise(true):
    np.testing.assert_allclose(astuple(fit_power_law(type(true), N, D, true(N, D))), astuple(true), rtol=1e-3)


@pytest.mark.parametrize("true", [SumLaw(0, 5, 40, 0.2, 1.1), SumLaw(3, 0, 20, 0.05, 0.5), ProductLaw(0, 9, 0.2, 0.8)])
def test_a_factor_that_is_zero_comes_back_as_zero(true):
    """Without an irreducible part, and without one that depends on the size alone."""
    found = fit_power_law(type(true), N, D, true(N, D))
    np.testing.assert_allclose(found(N, D), true(N, D), rtol=1e-4)
    assert found.B == pytest.approx(true.B, rel=0.01) and found.beta == pytest.approx(true.beta, rel=0.01)
    assert true.E or found.E == pytest.approx(0, abs=0.1)


@BOTH
def test_no_factor_is_negative(true):
    """Figures that would need a negative irreducible part."""
    law = fit_power_law(type(true), N, D, replace(true, E=0)(N, D) - 0.01)
    assert law.E == 0 and min(astuple(law)) == 0


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_with_noise_the_fit_is_nearer_to_the_truth_than_the_points(true, seed):
    """1 % of noise: k constants of twelve points take k twelfths of its variance, on average."""
    y = noisy(true, 0.01, seed)
    error = fit_power_law(type(true), N, D, y)(N, D) / true(N, D) - 1
    assert np.sqrt((error**2).mean()) < 0.01 * np.sqrt(len(astuple(true)) / 12) * 1.6
    assert np.sqrt((error**2).mean()) < np.sqrt(((y / true(N, D) - 1) ** 2).mean())


@BOTH
def test_the_constants_of_noisy_points_are_within_their_errors(true):
    """Within three of the jackknife's standard errors."""
    y = noisy(true, 0.005, 4)
    found, errors = (
        fit_power_law(type(true), N, D, y),
        jackknife_errors(left_out(partial(fit_power_law, type(true)), N, D, y)),
    )
    for name, error in errors.items():
        assert abs(getattr(found, name) - getattr(true, name)) < 3 * error


@BOTH
def test_the_fit_weighs_relative_errors(true):
    """A tenth off at the largest figure counts as much as a tenth off at the smallest, so the units do not matter."""
    y = noisy(true, 0.02, 1)
    small, large = fit_power_law(type(true), N, D, y), fit_power_law(type(true), N, D, 1000 * y)
    np.testing.assert_allclose(large(N, D), 1000 * small(N, D), rtol=1e-9)


def test_points_that_are_left_out_are_not_seen():
    """Whatever the point that is left out was, the law without it is the same."""
    some = np.arange(0, len(N), 2)
    y = noisy(PRODUCT, 0.01, 0)[some]
    changed = y.copy()
    changed[3] *= 2
    fit = partial(fit_power_law, ProductLaw)
    first, second = (left_out(fit, N[some], D[some], figures) for figures in (y, changed))
    assert first[3] == second[3] and first[2] != second[2]


def test_standard_errors_are_the_jackknifes():
    """Of the mean of n numbers, by hand: the standard deviation over the root of n."""
    numbers = np.array([1.0, 2.0, 4.0, 9.0])
    means = [(numbers.sum() - number) / 3 for number in numbers]
    errors = jackknife_errors([ProductLaw(mean, 0, 0.5, 0.5) for mean in means])
    assert errors["E"] == pytest.approx(numbers.std(ddof=1) / np.sqrt(4)) and errors["B"] == errors["beta"] == 0


@BOTH
def test_fewer_points_than_constants(true):
    few = len(astuple(true)) - 1
    with pytest.raises(ValueError, match=f"{few} points: the law has {few + 1} constants"):
        fit_power_law(type(true), N[:few], D[:few], true(N[:few], D[:few]))
