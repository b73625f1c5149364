"""Datasets of points: shapes, splits, and the distributions that they are drawn from."""

import numpy as np
import pytest

from minidiff.data import BUILT_IN, POINTS, open_dataset
from minidiff.data.points import CLUSTERS, LINE, swiss_roll, two_clusters, two_moons
from minidiff.errors import MinidiffError, NoSplit

N = 20_000


def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("name, D", [("line", 1), ("two_clusters", 2), ("two_moons", 2), ("swiss_roll", 2)])
def test_points_are_images_of_one_pixel(name, D):
    train, test = open_dataset(name), open_dataset(name, split="test")
    x = train.take(np.arange(len(train)))
    assert name in BUILT_IN and train.shape == test.shape == (1, 1, D) and not train.mirrors
    assert x.shape == (10_000, 1, 1, D) and x.dtype == np.float32 and len(test) == 4000
    assert np.abs(x).max() < 2 and 0.25 < x.std((0, 1, 2)).min() <= x.std((0, 1, 2)).max() < 0.55
    np.testing.assert_array_equal(x, open_dataset(name).take(np.arange(len(train))))
    assert not np.isin(test.take(np.arange(100)), x).all(-1).any()
    assert np.abs(train.labels.mean() - (len(train.classes) - 1) / 2) < 4 * 0.5 / 10_000**0.5


def test_classes():
    assert open_dataset("two_clusters").classes == ("cat", "dog")
    assert open_dataset("two_moons").classes == ("upper", "lower")
    assert open_dataset("swiss_roll").classes == ("swiss_roll",)


def test_refusals():
    for name in POINTS:
        with pytest.raises(NoSplit, match=f"{name}: has no split 'valid'; take train or test"):
            open_dataset(name, split="valid")
    with pytest.raises(MinidiffError, match="swiss_roll: its images are 1x1, not of size 8"):
        open_dataset("swiss_roll", size=8)


@pytest.mark.parametrize("mixture", [LINE, CLUSTERS])
def test_components_of_a_mixture(mixture):
    """Weights, means and standard deviations, each within four standard errors."""
    x, component = mixture.draw(rng(), N)
    for k, (weight, mean, std) in enumerate(zip(*mixture, strict=True)):
        own = x[component == k]
        assert abs(len(own) / N - weight) < 4 * (weight * (1 - weight) / N) ** 0.5
        assert (np.abs(own.mean(0) - mean) < 4 * std / len(own) ** 0.5).all()
        assert (np.abs(own.std(0) - std) < 4 * std / (2 * len(own)) ** 0.5).all()


def test_cats_and_dogs_lie_apart():
    x, labels = two_clusters(rng(), N)
    assert (x[labels == 0].sum(1) < 0).mean() > 0.99 and (x[labels == 1].sum(1) > 0).mean() > 0.99


def test_moons_are_half_circles():
    """The distance to the circle of a point's class is the noise; the upper moon opens downward."""
    x, labels = two_moons(rng(), N)
    for k, sign in enumerate((1, -1)):
        own = sign * x[labels == k] / 0.6 + [0.5, 0.25]
        distance = 0.6 * (np.hypot(*own.T) - 1)
        assert abs(distance.std() / 0.03 - 1) < 0.05 and abs(distance.mean()) < 0.002
        assert own[:, 1].min() > -0.3


def test_the_radius_of_the_roll_grows_with_the_angle():
    """It is the angle / 15, up to whole turns, and noise."""
    x, _ = swiss_roll(rng(), N)
    radius, angle = np.hypot(*x.T), np.arctan2(x[:, 1], x[:, 0])
    turns = np.round((15 * radius - angle) / (2 * np.pi))
    distance = radius - (angle + 2 * np.pi * turns) / 15
    assert abs(distance.std() / 0.02 - 1) < 0.1
    assert 0.2 < radius.min() < 0.32 and 0.94 < radius.max() < 1.05
