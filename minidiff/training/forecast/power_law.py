"""The law: a figure of trained networks as a power function of their size N and of the images D that they saw.

    product   L(N, D) = E + B N^-alpha D^-beta
    sum       L(N, D) = E + A N^-alpha + B D^-beta             (Hoffmann et al. 2022, arXiv 2203.15556, eq. 2)

E is the irreducible part: no network and no training takes the figure below it. In the sum, A N^-alpha is what a
network of N parameters lacks when it has seen all there is to see, and B D^-beta what is missing after D images. In the
product, which fits short trainings, a network of k times the parameters is ahead by a factor of k^(alpha / beta) in
images. Such powers were found by Hestness et al. (2017, arXiv 1712.00409) of the error, and by Kaplan et al. (2020,
arXiv 2001.08361) of the loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import combinations
from typing import Any, ClassVar, TypeVar

import numpy as np

N_UNIT, D_UNIT = 1e6, 1e4  # parameters and images in which A and B are counted
FLATTEST, STEEPEST = 0.05, 2.0  # exponents that are tried
GRID, ZOOMS = 16, 8  # exponents on a side of the grid; times that it is made finer around the best pair
KEPT = 3  # steps to each side of the best pair that the finer grid spans: the least error lies along a narrow valley

Number = float | np.ndarray


@dataclass(frozen=True)
class ProductLaw:
    """The constants of the product; B belongs to a million parameters and ten thousand images."""

    FACTORS: ClassVar = ("E", "B")  # in which the law is linear

    E: float
    B: float
    alpha: float
    beta: float

    @staticmethod
    def terms(N: Number, D: Number, alpha: Number, beta: Number) -> list[Number]:
        """What the factors multiply; N and D in units."""
        return [1.0, N**-alpha * D**-beta]

    def __call__(self, parameters: Number, images: Number) -> Any:
        return _value(self, parameters, images)


@dataclass(frozen=True)
class SumLaw:
    """The constants of the sum; A belongs to a million parameters, B to ten thousand images."""

    FACTORS: ClassVar = ("E", "A", "B")

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    @staticmethod
    def terms(N: Number, D: Number, alpha: Number, beta: Number) -> list[Number]:
        """What the factors multiply; N and D in units."""
        return [1.0, N**-alpha, D**-beta]

    def __call__(self, parameters: Number, images: Number) -> Any:
        return _value(self, parameters, images)


PowerLaw = ProductLaw | SumLaw
K = TypeVar("K", ProductLaw, SumLaw)
F = TypeVar("F")


def _value(law: PowerLaw, parameters: Number, images: Number) -> Any:
    terms = law.terms(parameters / N_UNIT, images / D_UNIT, law.alpha, law.beta)
    return sum(getattr(law, name) * term for name, term in zip(law.FACTORS, terms, strict=True))


def fit_power_law(kind: type[K], parameters: np.ndarray, images: np.ndarray, figures: np.ndarray) -> K:
    """The law of that kind with the least sum of squared relative errors at n points; arrays (n,), positive.

    Given both exponents a law is linear in its factors >= 0. So only the exponents are searched for, on a grid that is
    made finer around the best pair: no start value is needed, and the same points always give the same law.
    Raises ValueError for fewer points than the law has constants.
    """
    if len(figures) < (constants := len(fields(kind))):
        raise ValueError(f"{len(figures)} points: the law has {constants} constants")
    N, D, y = np.asarray(parameters) / N_UNIT, np.asarray(images) / D_UNIT, np.asarray(figures)
    alphas = betas = np.geomspace(FLATTEST, STEEPEST, GRID)
    best = (np.inf, np.zeros(len(kind.FACTORS)), 0.0, 0.0)
    for _ in range(ZOOMS + 1):
        alpha, beta = (a.reshape(-1, 1) for a in np.meshgrid(alphas, betas))  # (GRID^2, 1)
        terms = np.broadcast_arrays(*(term / y for term in kind.terms(N, D, alpha, beta)), alpha * y)[:-1]
        errors, factors = _nonnegative_least_squares(np.stack(terms, axis=2))
        i = int(errors.argmin())
        if errors[i] < best[0]:
            best = (errors[i], factors[i], alpha[i, 0], beta[i, 0])
        alphas, betas = (_around(value, values) for value, values in ((best[2], alphas), (best[3], betas)))
    return kind(*map(float, (*best[1], *best[2:])))


def _around(value: float, values: np.ndarray) -> np.ndarray:
    """A finer grid: as many exponents, from KEPT steps of `values` below the best to as many above."""
    step = (values[1] / values[0]) ** KEPT
    return np.clip(np.geomspace(value / step, value * step, GRID), FLATTEST, STEEPEST)


def _nonnegative_least_squares(terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of G matrices (n, k) the factors >= 0 with which its columns add up best to 1: errors (G,), (G, k).

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


def left_out(fit: Callable[..., F], parameters: np.ndarray, images: np.ndarray, figures: np.ndarray) -> list[F]:
    """The laws fit(parameters, images, figures) of all points but one, for each point in turn (the jackknife)."""
    others = [np.arange(len(figures)) != i for i in range(len(figures))]
    return [fit(parameters[some], images[some], figures[some]) for some in others]


def jackknife_errors(laws: Sequence[Any]) -> dict[str, float]:
    """The jackknife's standard errors of the constants of a law, from the n laws that lack a point each."""
    constants = np.array([astuple(law) for law in laws])  # (n, constants)
    errors = np.sqrt((len(laws) - 1) * constants.var(axis=0))
    return {field.name: float(error) for field, error in zip(fields(laws[0]), errors, strict=True)}
