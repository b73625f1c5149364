"""Fits the law to the ledger of runs.py and writes its constants into the package: python benchmarks/law/fit.py

    curve     power law, the product, of the means of the loss over windows of the longest runs, at a constant rate
    end       the same of the mean loss over the last tenth of every fitted run
    distance  the Frechet distance of every fitted run, by its final loss
    for_comparison   other power laws, of the loss and of the distance

With each stand the jackknife's standard errors of its constants, and its error: the root mean square of the relative
errors at points that were left out of the fit, for the distance of both fits.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from runs import LEDGER

from minidiff.training.forecast.distance_law import fit_distance_law
from minidiff.training.forecast.forecast import AFTER_WARMUP, LAW, Law, law_from_dict, predict, tenth
from minidiff.training.forecast.power_law import ProductLaw, SumLaw, fit_power_law, jackknife_errors, left_out

WARMUP = 50  # steps of all runs
EDGES = AFTER_WARMUP * WARMUP * np.sqrt(2.0) ** np.arange(8)  # steps between which the loss of the curve is averaged

Row = dict[str, Any]
Points = tuple[np.ndarray, np.ndarray, np.ndarray]  # parameters, images and figures, (n,) each
Fit = Callable[..., Any]  # (parameters, images, figures) -> law
PRODUCT, SUM = partial(fit_power_law, ProductLaw), partial(fit_power_law, SumLaw)


def read_rows(role: str, path: Path = LEDGER) -> list[Row]:
    """The ledger's runs of a role, "fitted" or "held out", in order."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["role"] == role]


def images(row: Row) -> int:
    """The images that a run saw, repeated ones included."""
    return row["steps"] * row["batch_size"]


def final_loss(row: Row) -> float:
    """The mean loss over the last tenth of a run's steps."""
    return float(np.mean(row["losses"][-tenth(row["steps"]) :]))


def curve_points(rows: list[Row]) -> Points:
    """Means of the loss at a constant learning rate, of each width's longest run: shorter ones repeat its start."""
    longest = max(row["steps"] for row in rows)
    points = []
    for row in (row for row in rows if row["steps"] == longest):
        for a, b in zip(EDGES[:-1], EDGES[1:], strict=True):
            loss = np.mean(row["losses"][round(a) : round(b)])
            points.append((row["parameters"], np.sqrt(a * b) * row["batch_size"], loss))
    return tuple(np.array(points).T)


def end_points(rows: list[Row]) -> Points:
    """The final loss of each run."""
    return tuple(np.array([(row["parameters"], images(row), final_loss(row)) for row in rows]).T)


def distance_points(rows: list[Row]) -> Points:
    """The distance of each run."""
    return tuple(np.array([(row["parameters"], images(row), row["distance"]["frechet"]) for row in rows]).T)


def fitted(fit: Fit, points: Points) -> Row:
    """A law with its constants, their standard errors, and its error, as law.json has it."""
    laws = left_out(fit, *points)
    N, D, y = points
    errors = [law(N[i], D[i]) / y[i] - 1 for i, law in enumerate(laws)]
    return entry(fit(*points), laws, errors)


def entry(law: Any, laws: list[Any], errors: list[float]) -> Row:
    """An entry of law.json: the law of all points, from those without one each its standard errors, and its error."""
    return {
        "constants": rounded(asdict(law)),
        "standard_errors": rounded(jackknife_errors(laws)),
        "error": round(float(np.sqrt(np.square(errors).mean())), 4),
        "points": len(laws),
    }


def fitted_distance(rows: list[Row]) -> Row:
    """The law of the distance, fitted to the measured final losses.

    Its errors are of the distance from parameters and images: without a run both laws are fitted to the others, and the
    distance is that of the loss by the power law.
    """
    (N, D, loss), y = end_points(rows), distance_points(rows)[2]
    laws, errors = [], []
    for i, end in enumerate(left_out(PRODUCT, N, D, loss)):
        others = np.arange(len(y)) != i
        laws.append(fit_distance_law(loss[others], y[others]))
        errors.append(laws[-1](end(N[i], D[i])) / y[i] - 1)
    return entry(fit_distance_law(loss, y), laws, errors)


def rounded(constants: dict[str, float]) -> dict[str, float]:
    """To five digits."""
    return {name: float(f"{value:.5g}") for name, value in constants.items()}


def fit_law(rows: list[Row]) -> Row:
    """All of law.json."""
    N, D, loss = end_points(rows)
    ranges = {"parameters": map(int, N), "images": map(int, D), "loss": map(float, loss.round(4))}
    ranges = {name: sorted(values) for name, values in ranges.items()}
    return {
        "command": "python benchmarks/law/fit.py",
        "curve": fitted(PRODUCT, curve_points(rows)),
        "end": fitted(PRODUCT, end_points(rows)),
        "distance": fitted_distance(rows),
        "for_comparison": {
            "sum_end": fitted(SUM, end_points(rows)),
            "product_distance": fitted(PRODUCT, distance_points(rows)),
            "sum_distance": fitted(SUM, distance_points(rows)),
        },
        "ranges": {name: [values[0], values[-1]] for name, values in ranges.items()},
    }


def forecasts(rows: list[Row], law: Law) -> list[Row]:
    """For each run: its row, the loss at its tenth, what it came to, and the forecast; None where there is none."""
    found = []
    for row in rows:
        own_data = row["data"] == "cifar10"
        start = row["losses"][: tenth(row["steps"])]
        expected = predict(law, row["parameters"], row["steps"], row["batch_size"], start, WARMUP, own_data)
        outcome = {"loss": final_loss(row), "distance": (row["distance"] or {}).get("frechet")}
        found.append(
            {"row": row, "so_far": float(np.mean(start[len(start) // 2 :])), "outcome": outcome, "expected": expected}
        )
    return found


if __name__ == "__main__":
    stored = fit_law(read_rows("fitted"))
    LAW.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(stored, indent=1))
    for found in forecasts(read_rows("held out"), law_from_dict(stored)):
        print(found["row"]["name"], found["outcome"], found["expected"])
