"""Metrics of generated against real images, of their features: Fréchet distance, KID, precision and recall.

f, g  features, one row an image: (n, D) and (m, D), any floats. Computed in float64, but for `nearest`.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from minidiff.data.dataset import slices

ROWS = 1024  # of the distance matrix at a time, which bounds memory


def mean_and_covariance(f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D), unbiased: over n - 1. Raises ValueError for fewer than two rows."""
    f = _rows(f, least=2)
    mean = f.mean(0)
    return mean, (f - mean).T @ (f - mean) / (len(f) - 1)


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """|mean1 - mean2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)): squared Fréchet distance of two Gaussians.

    It equals the squared 2-Wasserstein distance (Dowson & Landau 1982); Heusel et al. 2017 apply it to features
    (arXiv 1706.08500, eq. 6). (cov1 cov2)^(1/2) has the trace of (S cov2 S)^(1/2) with S = cov1^(1/2). That matrix is
    symmetric positive semidefinite; eigenvalues that rounding makes negative are set to 0. So covariances may have any
    rank, as with fewer images than features. Estimated from samples it is biased upwards, the more the fewer they are.
    """
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T  # S, (D, D)
    trace_of_root = np.sqrt(np.linalg.eigvalsh(root @ cov2 @ root).clip(0)).sum()
    return float(np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * trace_of_root)


def frechet_distance_of(f: np.ndarray, g: np.ndarray) -> float:
    """The `frechet_distance` of the Gaussians with the means and covariances of features f (n, D) and g (m, D)."""
    return frechet_distance(*mean_and_covariance(f), *mean_and_covariance(g))


def kid(f: np.ndarray, g: np.ndarray, rng: np.random.Generator, subsets: int = 100) -> tuple[float, float]:
    """Kernel Inception Distance on any features: mean and standard deviation of `mmd2` over random subsets.

    Bińkowski et al. 2018 (arXiv 1801.01401, section 4). A subset has 1000 rows, or half of the smaller set if that is
    less. Unlike the Fréchet distance the estimate is unbiased: 0 in expectation for two samples of one distribution.
    Raises ValueError for fewer than four rows.
    """
    f, g = _rows(f, least=4), _rows(g, least=4)
    size = min(1000, len(f) // 2, len(g) // 2)
    distances = [mmd2(f[rng.permutation(len(f))[:size]], g[rng.permutation(len(g))[:size]]) for _ in range(subsets)]
    return float(np.mean(distances)), float(np.std(distances))


def mmd2(f: np.ndarray, g: np.ndarray) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy with the kernel k(x, y) = (x.y / D + 1)^3.

    E k(x, x') + E k(y, y') - 2 E k(x, y), where x is not x' and y is not y' (Gretton et al. 2012, eq. 3).
    """
    f, g = _rows(f, least=2), _rows(g, least=2)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def mean_off_diagonal(x: np.ndarray) -> float:
        k, n = kernel(x, x), len(x)
        return (k.sum() - np.trace(k)) / (n * (n - 1))

    return float(mean_off_diagonal(f) + mean_off_diagonal(g) - 2 * kernel(f, g).mean())


def precision_recall(real: np.ndarray, generated: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Precision, the fraction of `generated` in the manifold of `real`, and recall, that of `real` in `generated`'s.

    The manifold of a set is the union of balls about its rows, each up to the row's k-th nearest neighbour in the set
    (Kynkäänniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2). Raises ValueError for k rows or fewer.
    """
    real, generated = _rows(real, least=k + 1), _rows(generated, least=k + 1)
    return _fraction_inside(real, generated, k), _fraction_inside(generated, real, k)


def _fraction_inside(f: np.ndarray, g: np.ndarray, k: int) -> float:
    """The fraction of the rows of g in the manifold of f."""
    radii = np.concatenate([np.partition(d, k, axis=1)[:, k] for d in _distances(f, f)])  # (n,); index 0 is the row
    return float(np.concatenate([(d <= radii).any(1) for d in _distances(g, f)]).mean())


def nearest(f: np.ndarray, blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """For every row of f the nearest row of a set given in blocks (m, D): its index and its distance, (n,) each.

    The distance is the root of the mean of the D squared differences, computed in the dtype of f.
    """
    indices, least, start = np.zeros(len(f), np.int64), np.full(len(f), np.inf), 0
    for block in blocks:
        closest = (np.square(block).sum(1) - 2 * f @ block.T).argmin(1)  # |x - y|^2 - |x|^2, least of m: (n,)
        distance = np.square(f - block[closest]).mean(1)
        closer = distance < least
        indices[closer], least[closer] = start + closest[closer], distance[closer]
        start += len(block)
    return indices, np.sqrt(least)


def whitening(f: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The affine map of features (m, D) that gives those of f mean 0 and the identity as covariance.

    Euclidean distances after it are Mahalanobis distances. Variances below a millionth of the largest are raised to it.
    Raises ValueError for fewer than two rows.
    """
    mean, covariance = mean_and_covariance(f)
    values, vectors = np.linalg.eigh(covariance)
    axes = vectors / np.sqrt(np.maximum(values, 1e-6 * values[-1]))  # (D, D)
    return lambda g: (g - mean) @ axes


def _distances(f: np.ndarray, g: np.ndarray) -> Iterator[np.ndarray]:
    """|x - y|^2 = |x|^2 + |y|^2 - 2 x.y for rows x of f, ROWS at a time, and all y of g: (ROWS, m) each."""
    g2 = np.square(g).sum(1)
    for part in slices(len(f), ROWS):
        x = f[part]
        yield np.square(x).sum(1)[:, None] + g2 - 2 * x @ g.T


def _rows(f: np.ndarray, least: int) -> np.ndarray:
    """f (n, D) in float64. Raises ValueError for fewer than `least` rows."""
    if f.ndim != 2 or len(f) < least:
        raise ValueError(f"features of shape {f.shape}: give (n, D) with n of {least} or more")
    return f.astype(np.float64)
