"""How far two sets of pictures are apart, seen through features of them: plain functions over arrays.

f, g  features, one row a picture: (n, D) and (m, D), any floats. Everything is computed in float64.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

ROWS = 1024  # of a table of distances at a time, so that memory stays small whatever the sets' size


def mean_and_covariance(f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D,) and (D, D), the latter unbiased: over n - 1. Raises ValueError for fewer than two rows."""
    f = _rows(f, least=2)
    mean = f.mean(0)
    return mean, (f - mean).T @ (f - mean) / (len(f) - 1)


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """|mean1 - mean2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)): the squared distance of two Gaussians.

    Wasserstein's distance, by Fréchet's formula (Dowson & Landau 1982), used on features by Heusel et al. 2017
    (arXiv 1706.08500, eq. 6). The product's root has the trace of (S cov2 S)^(1/2) with S = cov1^(1/2), and that one
    is symmetric: its eigenvalues are real, and those that rounding leaves below 0 are 0. So covariances of any rank
    will do, those of fewer pictures than features too; but the fewer pictures, the larger it comes out.
    """
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T  # S, (D, D)
    shared = np.sqrt(np.linalg.eigvalsh(root @ cov2 @ root).clip(0)).sum()
    return float(np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * shared)


def kid(f: np.ndarray, g: np.ndarray, rng: np.random.Generator, subsets: int = 100) -> tuple[float, float]:
    """Kernel distance: mean and standard deviation, over random subsets, of `mmd2`.

    Bińkowski et al. 2018 (arXiv 1801.01401, section 4). Subsets are of 1000 rows each, or of half of the smaller set
    if that is less. Unlike Fréchet's distance it is 0 on average for samples of one distribution, however few.
    Raises ValueError for fewer than four rows.
    """
    f, g = _rows(f, least=4), _rows(g, least=4)
    size = min(1000, len(f) // 2, len(g) // 2)
    distances = [mmd2(f[rng.permutation(len(f))[:size]], g[rng.permutation(len(g))[:size]]) for _ in range(subsets)]
    return float(np.mean(distances)), float(np.std(distances))


def mmd2(f: np.ndarray, g: np.ndarray) -> float:
    """The squared maximum mean discrepancy under k(x, y) = (x.y / D + 1)^3, estimated without bias.

    E k(x, x') + E k(y, y') - 2 E k(x, y), where x is not x' and y is not y' (Gretton et al. 2012, eq. 3).
    """
    f, g = _rows(f, least=2), _rows(g, least=2)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def among_others(x: np.ndarray) -> float:
        k, n = kernel(x, x), len(x)
        return (k.sum() - np.trace(k)) / (n * (n - 1))

    return float(among_others(f) + among_others(g) - 2 * kernel(f, g).mean())


def precision_recall(real: np.ndarray, drawn: np.ndarray, k: int = 3) -> tuple[float, float]:
    """The share of `drawn` that lies among `real`, and the share of `real` that lies among `drawn`.

    To lie among a set is to be no farther from one of its rows than that row's k-th nearest neighbour in it is
    (Kynkäänniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2). Raises ValueError for k rows or fewer.
    """
    real, drawn = _rows(real, least=k + 1), _rows(drawn, least=k + 1)
    return _share_among(real, drawn, k), _share_among(drawn, real, k)


def _share_among(f: np.ndarray, g: np.ndarray, k: int) -> float:
    """The share of the rows of g that lie among f."""
    radii = np.concatenate([np.partition(d, k, axis=1)[:, k] for d in _distances(f, f)])  # (n,); place 0 is itself
    return float(np.concatenate([(d <= radii).any(1) for d in _distances(g, f)]).mean())


def nearest(f: np.ndarray, blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """For every row of f the nearest row of a set that comes in blocks (m, D): its number and its distance, (n,) each.

    The distance is the root of the mean of the D squared differences; all in the floats of f.
    """
    found, least, start = np.zeros(len(f), np.int64), np.full(len(f), np.inf), 0
    for block in blocks:
        here = (np.square(block).sum(1) - 2 * f @ block.T).argmin(1)  # |x - y|^2 less |x|^2, of m the least: (n,)
        distance = np.square(f - block[here]).mean(1)
        closer = distance < least
        found[closer], least[closer] = start + here[closer], distance[closer]
        start += len(block)
    return found, np.sqrt(least)


def whitening(f: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The linear map of features (m, D) after which those of f have mean 0 and the unit matrix as covariance.

    Distances are then Mahalanobis's. The variance of no direction counts as less than a millionth of the widest's.
    Raises ValueError for fewer than two rows.
    """
    mean, covariance = mean_and_covariance(f)
    values, vectors = np.linalg.eigh(covariance)
    axes = vectors / np.sqrt(np.maximum(values, 1e-6 * values[-1]))  # (D, D)
    return lambda g: (g - mean) @ axes


def _distances(f: np.ndarray, g: np.ndarray) -> Iterator[np.ndarray]:
    """|x - y|^2 = |x|^2 + |y|^2 - 2 x.y for rows x of f, ROWS at a time, and all y of g: (ROWS, m) each."""
    g2 = np.square(g).sum(1)
    for start in range(0, len(f), ROWS):
        x = f[start : start + ROWS]
        yield np.square(x).sum(1)[:, None] + g2 - 2 * x @ g.T


def _rows(f: np.ndarray, least: int) -> np.ndarray:
    """(n, D) in float64, n at least that."""
    if f.ndim != 2 or len(f) < least:
        raise ValueError(f"features of shape {f.shape}: give (n, D) with n of {least} or more")
    return f.astype(np.float64)
