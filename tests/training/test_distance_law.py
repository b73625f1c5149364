"""The law of the distance: known constants come back from synthetic points."""

from dataclasses import astuple

import numpy as np
import pytest

from minidiff.training.forecast.distance_law import DistanceLaw, fit_distance_law

TRUE = DistanceLaw(slope=1300, middle=0.128, width=0.01)
LOSSES = np.geomspace(0.12, 0.34, 12)


def test_the_law_at_a_point():
    """Half of the line at the middle, the line itself at high losses, and e times less a width lower at low ones."""
    assert TRUE(0.128) == pytest.approx(1300 * 0.128 / 2)
    assert TRUE(0.4) == pytest.approx(1300 * 0.4)
    assert TRUE(0.04) / 0.04 / (TRUE(0.03) / 0.03) == pytest.approx(np.e, rel=1e-3)


def test_the_constants_come_back():
    np.testing.assert_allclose(astuple(fit_distance_law(LOSSES, TRUE(LOSSES))), astuple(TRUE), rtol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_with_noise_the_fit_is_nearer_to_the_truth_than_the_points(seed):
    noise = 0.05 * np.random.default_rng(seed).standard_normal(len(LOSSES))
    error = fit_distance_law(LOSSES, TRUE(LOSSES) * (1 + noise))(LOSSES) / TRUE(LOSSES) - 1
    assert np.sqrt((error**2).mean()) < np.sqrt((noise**2).mean()) * 0.8


def test_the_fit_weighs_relative_errors():
    """In other units of the distance the slope is another, and all else the same."""
    noise = 1 + 0.05 * np.random.default_rng(1).standard_normal(len(LOSSES))
    small, large = (fit_distance_law(LOSSES, unit * TRUE(LOSSES) * noise) for unit in (1, 1000))
    np.testing.assert_allclose(astuple(large), np.array(astuple(small)) * (1000, 1, 1), rtol=1e-6)


def test_fewer_points_than_constants():
    with pytest.raises(ValueError, match="2 points: the law has 3 constants"):
        fit_distance_law(LOSSES[:2], TRUE(LOSSES[:2]))
