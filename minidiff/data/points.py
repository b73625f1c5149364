"""Datasets of points, in one or two dimensions, from distributions that are known.

line           1-D: a mixture of three Gaussians (LINE)
two_clusters   2-D: a Gaussian for each of the classes cat and dog (CLUSTERS)
two_moons      2-D: two interleaved half circles, the classes upper and lower
swiss_roll     2-D: a spiral

A point is an image of one pixel whose channels are its coordinates: (N, 1, 1, D) float32. They are scaled to a standard
deviation of about 0.5, which images in [-1, 1] have. Each function draws n points: coordinates (n, D) and labels (n,).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minidiff.data.dataset import Dataset, from_arrays
from minidiff.errors import NoSplit

SPLITS = {"train": (10_000, 0), "test": (4000, 1)}  # number of points, seed


class Mixture(NamedTuple):
    """A mixture of isotropic Gaussians: weights (K,), means (K, D), standard deviations (K,)."""

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray

    def draw(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """n points (n, D), and the component of each (n,)."""
        component = rng.choice(len(self.weights), n, p=self.weights)
        eps = rng.standard_normal((n, self.means.shape[1]))
        return self.means[component] + self.stds[component, None] * eps, component


LINE = Mixture(np.array([0.5, 0.3, 0.2]), np.array([[-0.6], [0.1], [0.75]]), np.array([0.1, 0.05, 0.15]))
CLUSTERS = Mixture(np.array([0.5, 0.5]), np.array([[-0.45, -0.45], [0.45, 0.45]]), np.array([0.2, 0.2]))


def line(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The mixture LINE, all of one class."""
    x, _ = LINE.draw(rng, n)
    return x, np.zeros(n, int)


def two_clusters(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The mixture CLUSTERS, labelled by component."""
    return CLUSTERS.draw(rng, n)


def two_moons(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Half circles of radius 0.6, each through the other's centre line, with noise of standard deviation 0.03."""
    labels = rng.integers(2, size=n)
    angle = rng.uniform(0, np.pi, n)
    upper = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], 1)  # (n, 2)
    circles = np.where(labels[:, None] == 0, upper, -upper)
    return 0.6 * circles + 0.03 * rng.standard_normal((n, 2)), labels


def swiss_roll(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The spiral of radius angle / 15, angles uniform from 1.5 pi to 4.5 pi, with noise of standard deviation 0.02."""
    angle = rng.uniform(1.5 * np.pi, 4.5 * np.pi, n)
    spiral = (angle / 15)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)  # (n, 2)
    return spiral + 0.02 * rng.standard_normal((n, 2)), np.zeros(n, int)


POINTS: dict[str, Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]] = {
    "line": line, "two_clusters": two_clusters, "two_moons": two_moons, "swiss_roll": swiss_roll,
}  # fmt: skip
CLASSES = {"two_clusters": ("cat", "dog"), "two_moons": ("upper", "lower")}


def points(name: str, split: str = "train") -> Dataset:
    """The dataset of points of that name, one of POINTS; its splits "train" and "test" are drawn independently.

    Raises NoSplit for another split.
    """
    if split not in SPLITS:
        raise NoSplit(f"{name}: has no split {split!r}; take {' or '.join(SPLITS)}")
    n, seed = SPLITS[split]
    x, labels = POINTS[name](np.random.default_rng(seed), n)
    x = x.astype(np.float32)[:, None, None]  # (n, 1, 1, D)
    return from_arrays(name, x, labels, CLASSES.get(name, (name,)), mirrors=False)
