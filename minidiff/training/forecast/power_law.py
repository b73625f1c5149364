"""The law: the loss of trained networks as a power function of their size N and of their progress D.

    loss      L = E + (A N^-alpha + B) D^-beta
    progress  D = steps / (1 + critical / batch size) (learning rate / 0.001)^delta

E is the irreducible part: no network and no training takes the loss below it. What is missing beyond it shrinks by a
power of the progress, for every size alike; a larger network is missing less, down to B D^-beta for the largest. Such
powers were found by Hestness et al. (2017, arXiv 1712.00409) of the error, and by Kaplan et al. (2020, arXiv
2001.08361) of the loss. At the critical batch size a step is worth half of what it is with an infinite batch
(McCandlish et al. 2018, arXiv 1812.06162, eq. 2.11).
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, ClassVar, TypeVar

import numpy as np

from minidiff.training.forecast.least_squares import least_squares

PARAMETERS, STEPS, RATE = 1e6, 1e3, 1e-3  # units

Number = float | np.ndarray


@dataclass(frozen=True)
class Training:
    """What the law depends on: numbers, or arrays (n,) of n trainings. steps: as `counted` in."""

    parameters: Number
    steps: Number
    batch_size: Number
    lr: Number

    def __getitem__(self, some: Any) -> "Training":
        return Training(*(np.asarray(values)[some] for values in astuple(self)))


def counted(steps: Number, warmup: int) -> Number:
    """The number of steps, each of a linear warm-up counted by its part of the learning rate."""
    within = np.minimum(steps, warmup)
    return steps - within + np.square(within) / max(2 * warmup, 1)


@dataclass(frozen=True)
class PowerLaw:
    """The constants; A belongs to a million parameters, and with B to a thousand steps of infinite batches."""

    START: ClassVar = (0.1, 0.02, 0.8, 0.02, 0.6, 12.0, 0.5)  # of a fit

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    critical: float
    delta: float

    def __call__(self, of: Training, ahead: Number = 1.0) -> Any:
        """The loss; ahead: a factor of the progress."""
        return self.E + (self.of_size(of) + self.B) * self.of_progress(of, ahead)

    def of_size(self, of: Training) -> Any:
        """A N^-alpha."""
        return self.A * (of.parameters / PARAMETERS) ** -self.alpha

    def of_progress(self, of: Training, ahead: Number = 1.0) -> Any:
        """D^-beta."""
        progress = of.steps / STEPS / (1 + self.critical / of.batch_size) * (of.lr / RATE) ** self.delta
        return (ahead * progress) ** -self.beta


K = TypeVar("K", bound=PowerLaw)
F = TypeVar("F")


def fit_power_law(kind: type[K], trainings: Training, losses: np.ndarray) -> K:
    """The law of that kind with the least sum of squared relative errors, of logarithms, at n losses (n,)."""
    return kind(*least_squares(lambda constants: np.log(kind(*constants)(trainings) / losses), kind.START).tolist())


def left_out(fit: Callable[[Any, np.ndarray], F], known: Any, figures: np.ndarray) -> list[F]:
    """The laws fit(known, figures) of all points but one, for each point in turn (the jackknife).

    known    what the law depends on: Training or an array, of n points
    figures  (n,)
    """
    others = [np.arange(len(figures)) != i for i in range(len(figures))]
    return [fit(known[some], figures[some]) for some in others]


def jackknife_errors(laws: Sequence[Any]) -> dict[str, float]:
    """The jackknife's standard errors of the constants of a law, from the n laws that lack a point each."""
    constants = np.array([astuple(law) for law in laws])  # (n, constants)
    errors = np.sqrt((len(laws) - 1) * constants.var(axis=0))
    return {field.name: float(error) for field, error in zip(fields(laws[0]), errors, strict=True)}
