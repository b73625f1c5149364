"""The law: known constants come back from synthetic points, with and without noise, and its error is honest."""

from dataclasses import astuple

import numpy as np
import pytest

from minidiff.training.forecast.power_law import PowerLaw, fit_power_law, left_out, standard_errors

TRUE = PowerLaw(E=0.1, A=0.01, alpha=0.4, B=0.03, beta=0.6)
N, D = (a.ravel() for a in np.meshgrid([1.7e5, 6.8e5, 2.7e6], 6400 * 2.0 ** np.arange(4)))  # as measured, 3 x 4


def noisy(error, seed):
    return TRUE(N, D) * (1 + error * np.random.default_rng(seed).standard_normal(len(N)))


def test_the_law_at_a_point():
    assert TRUE(1e6, 1e4) == pytest.approx(0.1 + 0.01 + 0.03)
    assert TRUE(1e9, 1e4) == pytest.approx(0.1 + 0.01 * 1000**-0.4 + 0.03)
    assert TRUE(1e6, 1e6) == pytest.approx(0.1 + 0.01 + 0.03 * 100**-0.6)


def test_the_constants_come_back_without_noise():
    np.testing.assert_allclose(astuple(fit_power_law(N, D, TRUE(N, D))), astuple(TRUE), rtol=1e-3)


@pytest.mark.parametrize("law", [PowerLaw(0.0, 5.0, 0.2, 40.0, 1.1), PowerLaw(3.0, 0.0, 0.05, 20.0, 0.5)])
def test_a_part_that_is_zero_comes_back_as_zero(law):
    """Without an irreducible part, and without one that depends on the size."""
    found = fit_power_law(N, D, law(N, D))
    np.testing.assert_allclose(found(N, D), law(N, D), rtol=1e-4)
    assert found.B == pytest.approx(law.B, rel=0.01) and found.beta == pytest.approx(law.beta, rel=0.01)
    assert (found.E if law.E == 0 else found.A) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_with_noise_the_fit_is_nearer_to_the_truth_than_the_points(seed):
    """1 % of noise: five constants of twelve points take five twelfths of its variance."""
    y = noisy(0.01, seed)
    error = fit_power_law(N, D, y)(N, D) / TRUE(N, D) - 1
    assert np.sqrt((error**2).mean()) < 0.01 * np.sqrt(5 / 12) * 1.6
    assert np.sqrt((error**2).mean()) < np.sqrt(((y / TRUE(N, D) - 1) ** 2).mean())


def test_the_fit_weighs_relative_errors():
    """A tenth off at the largest figure counts as much as a tenth off at the smallest, so the units do not matter."""
    y = noisy(0.02, 1)
    small, large = fit_power_law(N, D, y), fit_power_law(N, D, 1000 * y)
    np.testing.assert_allclose(large(N, D), 1000 * small(N, D), rtol=1e-9)


def test_left_out_points_are_not_seen():
    """Whatever the point that is left out was, the law without it is the same."""
    some = np.arange(0, len(N), 2)
    y = noisy(0.01, 0)[some]
    changed = y.copy()
    changed[3] *= 2
    first, second = left_out(N[some], D[some], y), left_out(N[some], D[some], changed)
    assert first[3] == second[3] and first[2] != second[2]


def test_standard_errors_are_the_jackknifes():
    """Of the mean of n numbers, by hand: the standard deviation over the root of n."""
    numbers = np.array([1.0, 2.0, 4.0, 9.0])
    means = [(numbers.sum() - number) / 3 for number in numbers]
    errors = standard_errors([PowerLaw(mean, 0, 0.5, 0, 0.5) for mean in means])
    assert errors.E == pytest.approx(numbers.std(ddof=1) / np.sqrt(4)) and errors.A == errors.beta == 0


def test_fewer_points_than_constants():
    with pytest.raises(ValueError, match="4 points: the law has 5 constants"):
        fit_power_law(N[:4], D[:4], TRUE(N[:4], D[:4]))
