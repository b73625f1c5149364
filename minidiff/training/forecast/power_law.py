"""The law: a figure of trained networks as a sum of power functions of their size and of the images that they saw.

    L(N, D) = E + A N^-alpha + B D^-beta                      (Hoffmann et al. 2022, arXiv 2203.15556, eq. 2)

E is the irreducible part: no network and no training takes the figure below it. The second term is what a network of N
parameters lacks when it has seen all there is to see, the third what is missing after D images. Such powers were found
of the error by Hestness et al. (2017, arXiv 1712.00409), and of the loss by Kaplan et al. (2020, arXiv 2001.08361).
"""

from dataclasses import astuple, dataclass
from itertools import combinations

import numpy as np

N_UNIT, D_UNIT = 1e6, 1e4  # parameters and images in which A and B are counted
FLATTEST, STEEPEST = 0.05, 2.0  # exponents that are tried
GRID, ZOOMS = 16, 5  # exponents on a side of the grid; times that it is made finer around the best pair


@dataclass(frozen=True)
class PowerLaw:
    """The constants of L(N, D); A belongs to a million parameters, B to ten thousand images."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def __call__(self, parameters: float | np.ndarray, images: float | np.ndarray) -> float | np.ndarray:
        return self.E + self.A * (parameters / N_UNIT) ** -self.alpha + self.B * (images / D_UNIT) ** -self.beta


def fit_power_law(parameters: np.ndarray, images: np.ndarray, figures: np.ndarray) -> PowerLaw:
    """The law with the least sum of squared relative errors at n >= 5 points; all arguments (n,), positive.

    Given both exponents the law is linear in E, A and B >= 0. So only the exponents are searched for, on a grid that is
    made finer around the best pair: no start value is needed, and the same points always give the same law.
    Raises ValueError for fewer points than the law has constants.
    """
    if len(figures) < 5:
        raise ValueError(f"{len(figures)} points: the law has 5 constants")
    N, D, y = np.asarray(parameters) / N_UNIT, np.asarray(images) / D_UNIT, np.asarray(figures)
    alphas = betas = np.geomspace(FLATTEST, STEEPEST, GRID)
    best = (np.inf, np.zeros(3), 0.0, 0.0)
    for _ in range(ZOOMS + 1):
        alpha, beta = (a.ravel() for a in np.meshgrid(alphas, betas))  # (GRID^2,)
        terms = np.stack([N**0 + 0 * alpha[:, None], N ** -alpha[:, None], D ** -beta[:, None]], axis=2) / y[:, None]
        errors, factors = _nonnegative_least_squares(terms)
        i = int(errors.argmin())
        if errors[i] < best[0]:
            best = (errors[i], factors[i], alpha[i], beta[i])
        alphas, betas = (_around(value, values) for value, values in ((best[2], alphas), (best[3], betas)))
    _, (E, A, B), alpha, beta = best
    return PowerLaw(float(E), float(A), float(alpha), float(B), float(beta))


def _around(value: float, values: np.ndarray) -> np.ndarray:
    """A finer grid: as many exponents, from one step of `values` below the best to one above."""
    step = values[1] / values[0]
    return np.clip(np.geomspace(value / step, value * step, GRID), FLATTEST, STEEPEST)


def _nonnegative_least_squares(terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of G matrices (n, 3) the factors >= 0 with which its columns add up best to 1: errors (G,), (G, 3).

    Some factors of the best combination are zero and the others are an ordinary least-squares solution, so every subset
    of the columns is tried.
    """
    G, n, k = terms.shape
    errors, factors = np.full(G, np.inf), np.zeros((G, k))
    for size in range(1, k + 1):
        for columns in map(list, combinations(range(k), size)):
            found = np.linalg.pinv(terms[:, :, columns]).sum(-1)  # (G, size), the solution for the right side 1
            left = ((np.einsum("gns,gs->gn", terms[:, :, columns], found) - 1) ** 2).sum(-1)
            better = (found >= 0).all(-1) & (left < errors)
            errors[better] = left[better]
            factors[better] = 0
            factors[np.ix_(better, columns)] = found[better]
    return errors, factors


def left_out(parameters: np.ndarray, images: np.ndarray, figures: np.ndarray) -> list[PowerLaw]:
    """The laws of all points but one, for each point in turn (the jackknife)."""
    laws = []
    for i in range(len(figures)):
        others = np.arange(len(figures)) != i
        laws.append(fit_power_law(parameters[others], images[others], figures[others]))
    return laws


def standard_errors(laws: list[PowerLaw]) -> PowerLaw:
    """The jackknife's standard errors of the constants, from the laws of `left_out`."""
    constants = np.array([astuple(law) for law in laws])  # (n, 5)
    return PowerLaw(*map(float, np.sqrt((len(laws) - 1) * constants.var(axis=0))))
