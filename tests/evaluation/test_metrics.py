"""Metrics against closed forms, definitions and brute force."""

import numpy as np
import pytest
import torch

from minidiff.evaluation import metrics
from minidiff.evaluation.metrics import frechet_distance, kid, mean_and_covariance, mmd2, nearest, precision_recall


def rng(seed=0):
    return np.random.default_rng(seed)


def covariance(D, rank, seed=0):
    factor = rng(seed).standard_normal((D, rank))
    return factor @ factor.T


# Fréchet distance. Rounding: an eigenvalue is off by 2^-52 of the largest, and where it is 0 its root by 1.5e-8.


def test_frechet_of_gaussians_with_the_same_axes():
    """Then it is |m1 - m2|^2 + the sum of (sqrt(l1) - sqrt(l2))^2 over the axes."""
    axes = np.linalg.qr(rng().standard_normal((6, 6)))[0]
    l1, l2 = rng(1).uniform(0.1, 4, (2, 6))
    m1, m2 = rng(2).standard_normal((2, 6))
    got = frechet_distance(m1, axes * l1 @ axes.T, m2, axes * l2 @ axes.T)
    want = np.sum((m1 - m2) ** 2) + np.sum((np.sqrt(l1) - np.sqrt(l2)) ** 2)
    assert got == pytest.approx(want, rel=1e-12)


def test_frechet_in_one_dimension():
    assert frechet_distance(np.ones(1), np.array([[4.0]]), np.zeros(1), np.array([[9.0]])) == pytest.approx(1 + 1)


@pytest.mark.parametrize("rank", [9, 4])
def test_frechet_of_any_two_gaussians(rank):
    """The root of the product itself, by its complex eigenvalues, as torch has them."""
    c1, c2 = covariance(9, 12, seed=1), covariance(9, rank, seed=2)
    root = torch.linalg.eigvals(torch.tensor(c1 @ c2)).sqrt().real.sum().item()
    want = np.trace(c1) + np.trace(c2) - 2 * root
    assert frechet_distance(np.zeros(9), c1, np.zeros(9), c2) == pytest.approx(want, abs=1e-6)
    assert frechet_distance(np.zeros(9), c2, np.zeros(9), c1) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("rank", [9, 3])
def test_frechet_of_a_gaussian_and_itself_is_zero(rank):
    c = covariance(9, rank)
    assert abs(frechet_distance(np.ones(9), c, np.ones(9), c)) < 9 * 2 * 1.5e-8 * np.trace(c)


def test_mean_and_covariance():
    f = rng().standard_normal((20, 5)).astype(np.float32)
    mean, c = mean_and_covariance(f)
    np.testing.assert_allclose(mean, f.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(c, np.cov(f.astype(np.float64), rowvar=False), rtol=1e-12)


# KID


def test_mmd2_is_its_definition():
    f, g = rng().standard_normal((5, 3)), rng(1).standard_normal((4, 3)) + 1

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    want = np.mean([k(f[i], f[j]) for i in range(5) for j in range(5) if i != j])
    want += np.mean([k(g[i], g[j]) for i in range(4) for j in range(4) if i != j])
    want -= 2 * np.mean([k(x, y) for x in f for y in g])
    assert mmd2(f, g) == pytest.approx(want, rel=1e-12)


def test_mmd2_of_one_distribution_is_zero_on_average():
    """500 pairs of samples of 20: the mean is within 4 of its own standard errors, and some are below 0."""
    generator = rng()
    found = np.array([mmd2(*generator.standard_normal((2, 20, 4))) for _ in range(500)])
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(len(found))
    assert (found < 0).any()


def test_mmd2_of_known_distributions():
    """One feature: the constant 0 against N(m, 1). E k = E (x y + 1)^3 by the moments of x and y."""
    m, n = 0.7, 400_00
    second, third = 1 + m**2, m**3 + 3 * m
    want = (third**2 + 3 * second**2 + 3 * m**2 + 1) + 1 - 2  # against 0, k is 1
    g = rng().standard_normal(n) + m
    # without the matrix of all pairs: sums of powers, less the diagonal
    pairs = sum(c * (np.sum(g**p) ** 2 - np.sum(g ** (2 * p))) for p, c in enumerate((1, 3, 3, 1)))
    assert pairs / (n * (n - 1)) - 1 == pytest.approx(want, rel=0.1)
    few = g[:1500, None]
    assert mmd2(np.zeros((5, 1)), few) == pytest.approx(want, rel=0.3)


def test_kid_is_the_mean_over_subsets():
    f, g = rng().standard_normal((60, 4)), rng(1).standard_normal((80, 4)) + 0.5
    mean, std = kid(f, g, rng(), subsets=200)
    one = [mmd2(f[:30], g[:30]), mmd2(f[30:], g[30:60])]
    assert std > 0 and abs(mean - mmd2(f, g)) < 5 * std / np.sqrt(200)
    assert min(one) - 3 * std < mean < max(one) + 3 * std
    assert kid(f, g, rng(), subsets=200) == (mean, std)


def test_kid_is_larger_for_another_distribution():
    f = rng().standard_normal((100, 4))
    same, other = rng(1).standard_normal((100, 4)), 1.5 * rng(1).standard_normal((100, 4))
    assert abs(kid(f, same, rng())[0]) < kid(f, other, rng())[0]


# Precision and recall


def test_features_against_themselves(monkeypatch):
    monkeypatch.setattr(metrics, "ROWS", 7)
    f = rng().standard_normal((30, 5))
    assert precision_recall(f, f) == (1, 1)
    f[:10] = f[0] + 100  # ten equal rows, far from zero: all of their neighbours are at distance 0
    assert precision_recall(f, f) == (1, 1)


def test_precision_and_recall_on_a_line():
    """Radii to the nearest neighbour by hand: of 0, 1, 3 they are 1, 1, 2; of 0.5, 9, 9.25 they are 8.5, 0.25, 0.25."""
    real, generated = np.array([[0.0], [1], [3]]), np.array([[0.5], [9], [9.25]])
    assert precision_recall(real, generated, k=1) == (1 / 3, 1)
    assert precision_recall(generated, real, k=1) == (1, 1 / 3)


def test_distant_features_have_neither():
    f = rng().standard_normal((20, 5))
    assert precision_recall(f, f + 100) == (0, 0)


def test_one_mode_of_two_has_high_precision_and_low_recall():
    real = np.concatenate([rng().standard_normal((200, 3)), rng(1).standard_normal((200, 3)) + 30])
    precision, recall = precision_recall(real, rng(2).standard_normal((400, 3)))
    assert precision > 0.8 and 0.4 < recall <= 0.5


def test_precision_and_recall_are_those_of_all_distances():
    f, g = rng().standard_normal((50, 6)), rng(1).standard_normal((40, 6)) * 1.3

    def inside(f, g):
        radii = np.sort(np.linalg.norm(f[:, None] - f, axis=2), axis=1)[:, 3]
        return np.mean([(np.linalg.norm(f - y, axis=1) <= radii).any() for y in g])

    assert precision_recall(f, g) == (inside(f, g), inside(g, f))


# Nearest neighbours


def test_nearest_in_blocks_is_the_nearest_of_all():
    f, g = rng().uniform(0, 1, (9, 50)).astype(np.float32), rng(1).uniform(0, 1, (23, 50)).astype(np.float32)
    g[17] = f[3]
    found, distance = nearest(f, (g[i : i + 5] for i in range(0, 23, 5)))
    d = np.sqrt(np.mean((f[:, None] - g) ** 2, axis=2))
    np.testing.assert_array_equal(found, d.argmin(1))
    np.testing.assert_allclose(distance, d.min(1), rtol=1e-5)
    assert (found[3], distance[3]) == (17, 0)


@pytest.mark.parametrize("function, rows", [(mean_and_covariance, 1), (lambda f: kid(f, f, rng()), 3)])
def test_too_few(function, rows):
    function(rng().standard_normal((rows + 1, 2)))
    with pytest.raises(ValueError, match=f"give .n, D. with n of {rows + 1} or more"):
        function(rng().standard_normal((rows, 2)))


def test_too_few_for_a_kth_neighbour():
    with pytest.raises(ValueError, match="n of 4 or more"):
        precision_recall(rng().standard_normal((3, 2)), rng().standard_normal((9, 2)))


def test_whitened_features_have_the_identity_as_covariance():
    rng = np.random.default_rng(0)
    f = rng.standard_normal((500, 4)) @ rng.standard_normal((4, 4)) * [1, 100, 1, 1] + 7
    g = metrics.whitening(f)(f)
    np.testing.assert_allclose(g.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cov(g.T), np.eye(4), atol=1e-9)


def test_whitening_with_a_constant_feature():
    f = np.random.default_rng(0).standard_normal((50, 3)) * [1, 1, 0]
    assert np.isfinite(metrics.whitening(f)(f + 1)).all()
