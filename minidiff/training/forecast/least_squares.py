"""Least squares for the few positive constants of a law: damped Gauss-Newton steps (Levenberg 1944, Marquardt 1963)."""

from collections.abc import Callable, Sequence

import numpy as np

STEPS = 200  # at most
DIFFERENCE = 1e-5  # of a logarithm, for the derivatives
MORE, LESS = 4.0, 0.25  # factors of the damping, after a step that made the error larger or smaller
SMALLEST, LARGEST = 1e-12, 1e12  # damping
ENOUGH = 1e-13  # relative change of the squared error that ends the search


def least_squares(errors: Callable[[np.ndarray], np.ndarray], start: Sequence[float]) -> np.ndarray:
    """The constants (k,) > 0 with the least sum of squares of errors(constants) (n,), near `start`.

    The search is among their logarithms, so that none becomes negative; the same start gives the same constants.
    Raises ValueError for fewer errors than constants.
    """
    logs, damping = np.log(np.asarray(start)), 1e-2

    def of(logs: np.ndarray) -> np.ndarray:
        return errors(np.exp(logs))

    now = of(logs)
    if len(now) < len(logs):
        raise ValueError(f"{len(now)} points: the law has {len(logs)} constants")
    for _ in range(STEPS):
        slopes = np.stack([of(logs + DIFFERENCE * axis) - now for axis in np.eye(len(logs))], 1) / DIFFERENCE  # (n, k)
        squares, descent = slopes.T @ slopes, -slopes.T @ now
        while damping < LARGEST:
            damped = squares + damping * np.diag(squares.diagonal() + SMALLEST)
            then = of(logs + (step := np.linalg.solve(damped, descent)))
            if then @ then < now @ now:
                break
            damping *= MORE
        else:
            break  # no step makes the error smaller
        gain, logs, now, damping = now @ now - then @ then, logs + step, then, max(damping * LESS, SMALLEST)
        if gain < ENOUGH * (now @ now):
            break
    return np.exp(logs)
