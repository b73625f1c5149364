"""The law: known constants come back from synthetic points, with and without noise, and its error is honest."""

from dataclasses import astuple, replace
from functools import partial

import numpy as np
import pytest

from minidiff.training.forecast.power_law import (
    PowerLaw,
    Training,
    counted,
    fit_power_law,
    jackknife_errors,
    left_out,
)

TRUE = PowerLaw(E=0.1, A=0.014, alpha=0.75, B=0.012, beta=0.6, critical=14, delta=0.5)
GRID = np.meshgrid([1.7e5, 6.8e5, 2.7e6], [200, 800, 1600], [16, 32], [0.001, 0.002])
RUNS = Training(*(a.ravel() for a in GRID))  # 36
LOSSES = TRUE(RUNS)
FIT = partial(fit_power_law, PowerLaw)


def noisy(error, seed):
    return LOSSES * (1 + error * np.random.default_rng(seed).standard_normal(len(LOSSES)))


def test_the_law_at_a_point():
    """At the critical batch size a step is worth half of what it is with an infinite batch."""
    infinite = Training(1e6, 1e3, 1e12, 1e-3)
    assert TRUE(infinite) == pytest.approx(0.1 + 0.014 + 0.012)
    assert TRUE(replace(infinite, batch_size=14, steps=2e3)) == pytest.approx(TRUE(infinite))
    assert TRUE(replace(infinite, lr=4e-3, steps=500)) == pytest.approx(TRUE(infinite))
    assert TRUE(replace(infinite, steps=8e3), ahead=0.125) == pytest.approx(TRUE(infinite))
    assert TRUE(replace(infinite, parameters=4e6, steps=1e5)) == pytest.approx(
        0.1 + (0.014 / 4**0.75 + 0.012) / 100**0.6
    )


def test_steps_of_the_warm_up_count_by_their_rate():
    assert counted(100, 0) == 100
    assert counted(100, 50) == 75
    assert counted(20, 50) == 4
    assert counted(50, 50) == 25


def test_the_constants_come_back_without_noise():
    np.testing.assert_allclose(astuple(FIT(RUNS, LOSSES)), astuple(TRUE), rtol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_with_noise_the_fit_is_nearer_to_the_truth_than_the_points(seed):
    """1 % of noise: 7 constants of 36 points take 7 / 36 of its variance, on average."""
    error = FIT(RUNS, noisy(0.01, seed))(RUNS) / LOSSES - 1
    assert np.sqrt((error**2).mean()) < 0.01 * np.sqrt(7 / 36) * 1.6


def test_the_constants_of_noisy_points_are_within_their_errors():
    """Within three of the jackknife's standard errors."""
    y = noisy(0.005, 4)
    found, errors = FIT(RUNS, y), jackknife_errors(left_out(FIT, RUNS, y))
    for name, error in errors.items():
        assert abs(getattr(found, name) - getattr(TRUE, name)) < 3 * error


def test_the_fit_weighs_relative_errors():
    """A tenth off at the largest loss counts as much as a tenth off at the smallest, so the units do not matter."""
    y = noisy(0.02, 1)
    small, large = FIT(RUNS, y), FIT(RUNS, 10 * y)
    np.testing.assert_allclose(large(RUNS), 10 * small(RUNS), rtol=1e-4)


def test_points_that_are_left_out_are_not_seen():
    """Whatever the point that is left out was, the law without it is the same."""
    y = noisy(0.01, 0)
    changed = y.copy()
    changed[3] *= 2
    first, second = (left_out(FIT, RUNS, losses) for losses in (y, changed))
    assert first[3] == second[3] and first[2] != second[2]


def test_standard_errors_are_the_jackknifes():
    """Of the mean of n numbers, by hand: the standard deviation over the root of n."""
    numbers = np.array([1.0, 2.0, 4.0, 9.0])
    means = [(numbers.sum() - number) / 3 for number in numbers]
    errors = jackknife_errors([replace(TRUE, E=mean) for mean in means])
    assert errors["E"] == pytest.approx(numbers.std(ddof=1) / np.sqrt(4)) and errors["B"] == errors["beta"] == 0


def test_fewer_points_than_constants():
    with pytest.raises(ValueError, match="6 points: the law has 7 constants"):
        FIT(RUNS[:6], LOSSES[:6])
