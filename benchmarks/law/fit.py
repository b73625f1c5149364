"""Fits the law to the ledger of runs.py and writes its constants into the package: python benchmarks/law/fit.py

    curve     power law of the loss over windows of the steps before the rate decays
    end       the same of the loss over the last tenth of every fitted run
    distance  the Frechet distance of every fitted run, by its final loss
    for_comparison   other power laws of the final loss

With each stand the jackknife's standard errors of its constants, and its error: the root mean square of the relative
errors at points that were left out of the fit. The losses are `level`s: means without the noise of the timesteps.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from runs import LEDGER

from minidiff.training.forecast.distance_law import fit_distance_law
from minidiff.training.forecast.forecast import AFTER_WARMUP, LAW, Law, law_from_dict, predict, tenth
from minidiff.training.forecast.power_law import (
    Number,
    PowerLaw,
    Training,
    counted,
    fit_power_law,
    jackknife_errors,
    left_out,
)
from minidiff.training.recipes import SCHEDULE

WARMUP = 50  # steps, where a row has no other number
GROWTH = 2**0.5  # of the windows over which the loss of the curve is averaged
PARTS = 8  # of the timesteps
FITTED = ("grid", "varied", "longer")  # roles in the ledger

Row = dict[str, Any]
Points = tuple[Training, np.ndarray]  # (n,) each
Fit = Callable[..., Any]  # (trainings, losses) -> law


class ProductLaw(PowerLaw):
    """L = E + A N^-alpha D^-beta: without B, which keeps its start value."""

    def __call__(self, of: Training, ahead: Number = 1.0) -> Any:
        return self.E + self.of_size(of) * self.of_progress(of, ahead)


class SumLaw(PowerLaw):
    """L = E + A N^-alpha + B D^-beta (Hoffmann et al. 2022, arXiv 2203.15556, eq. 2)."""

    def __call__(self, of: Training, ahead: Number = 1.0) -> Any:
        return self.E + self.of_size(of) + self.B * self.of_progress(of, ahead)


POWER, PRODUCT, SUM = (partial(fit_power_law, kind) for kind in (PowerLaw, ProductLaw, SumLaw))


def read_rows(role: str, path: Path = LEDGER) -> list[Row]:
    """The ledger's runs of a role, in order."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["role"] == role]


def fitted_rows() -> list[Row]:
    """The runs that the law is fitted to."""
    return [row for role in FITTED for row in read_rows(role) if row["data"] == "cifar10"]


def images(row: Row) -> int:
    """The images that a run saw, repeated ones included."""
    return row["steps"] * row["batch_size"]


def final_loss(row: Row) -> float:
    """The mean loss over the last tenth of a run's steps; all that is known of longer runs."""
    if "loss" in row:
        return row["loss"]
    return float(np.mean(row["losses"][-tenth(row["steps"]) :]))


@cache
def drawn_parts(seed: int, steps: int, batch_size: int) -> np.ndarray:
    """Which part of each step's timesteps lies in each of PARTS equal ranges, (steps, PARTS); train_step draws them."""
    t = [SCHEDULE.sample_t(np.random.default_rng([seed, step]), batch_size) for step in range(1, steps + 1)]
    part = (PARTS * SCHEDULE.quantile(np.stack(t))).astype(int)  # (steps, batch_size)
    return np.stack([(part == k).mean(1) for k in range(PARTS)], 1)


def loss_profile(rows: list[Row]) -> np.ndarray:
    """The loss in each range of timesteps by the mean loss, (PARTS,): least squares over the last tenths of runs."""
    losses, drawn = [], []
    for row in (row for row in rows if "losses" in row):
        last = tenth(row["steps"])
        losses.append(np.array(row["losses"][-last:]) / final_loss(row))
        drawn.append(drawn_parts(row["seed"], row["steps"], row["batch_size"])[-last:])
    profile = np.linalg.lstsq(np.concatenate(drawn), np.concatenate(losses), rcond=None)[0]
    return profile / profile.mean()


def level(row: Row, first: int, last: int, profile: np.ndarray) -> float:
    """The mean loss of the steps after `first` to `last`, by what it would be for the timesteps that were drawn.

    Half of the variance of the loss is that of the timesteps; this is without it.
    """
    drawn = drawn_parts(row["seed"], row["steps"], row["batch_size"])[first:last].mean(0)
    return float(np.mean(row["losses"][first:last]) / (drawn @ profile))


def training(row: Row, steps: float) -> Training:
    """A run up to a step."""
    return Training(row["parameters"], counted(steps, row.get("warmup", WARMUP)), row["batch_size"], row["lr"])


def points(found: list[tuple[Training, float]]) -> Points:
    """Trainings and losses as arrays."""
    trainings, losses = zip(*found, strict=True)
    columns = zip(*(asdict(one).values() for one in trainings), strict=True)
    return Training(*map(np.array, columns)), np.array(losses)


def curve_points(rows: list[Row]) -> Points:
    """Levels of the loss at a constant rate; of runs with the same beginning, those of the longest."""
    profile, found = loss_profile(rows), []
    longest = {
        (row["width"], row["batch_size"], row["lr"], row["seed"]): row
        for row in sorted(rows, key=images)
        if "losses" in row
    }
    for row in longest.values():
        first = AFTER_WARMUP * WARMUP
        while (last := first * GROWTH) <= row["steps"] / 2:
            middle = training(row, np.sqrt(first * last))
            found.append((middle, level(row, round(first), round(last), profile)))
            first = last
    return points(found)


def end_points(rows: list[Row]) -> Points:
    """The level of the loss over the last tenth of each run."""
    profile = loss_profile(rows)
    return points([(training(row, row["steps"]), final_level(row, profile)) for row in rows])


def final_level(row: Row, profile: np.ndarray) -> float:
    """The level of the loss over the last tenth; the loss itself where a run's other losses are not known."""
    steps = row["steps"]
    return final_loss(row) if "loss" in row else level(row, steps - tenth(steps), steps, profile)


def distances(rows: list[Row]) -> np.ndarray:
    """The distance of each run, nan where it was not measured."""
    return np.array([row["distance"]["frechet"] if row["distance"] else np.nan for row in rows])


def fitted(fit: Fit, trainings: Training, losses: np.ndarray) -> Row:
    """A law with its constants, their standard errors, and its error, as law.json has it."""
    laws = left_out(fit, trainings, losses)
    expected = [law(trainings[i]) for i, law in enumerate(laws)]
    return entry(fit(trainings, losses), laws, expected / losses - 1)


def fitted_end(fit: Fit, rows: list[Row]) -> Row:
    """A law of the final loss; with the error of the distance, if that is by the loss that the law expects.

    Without a run both laws are fitted to the others.
    """
    trainings, losses = end_points(rows)
    distance = distances(rows)
    errors = []
    for i, law in enumerate(left_out(fit, trainings, losses)):
        if distance[i] > 0:
            others = (distance > 0) & (np.arange(len(rows)) != i)
            errors.append(fit_distance_law(losses[others], distance[others])(law(trainings[i])) / distance[i] - 1)
    return fitted(fit, trainings, losses) | {"error_of_distance": root_mean_square(errors)}


def entry(law: Any, laws: list[Any], errors: np.ndarray) -> Row:
    """An entry of law.json: the law of all points, from those without one each its standard errors, and its error."""
    return {
        "constants": rounded(asdict(law)),
        "standard_errors": rounded(jackknife_errors(laws)),
        "error": root_mean_square(errors),
        "points": len(laws),
    }


def root_mean_square(errors: Any) -> float:
    """To four decimals."""
    return round(float(np.sqrt(np.square(errors).mean())), 4)


def fitted_distance(losses: np.ndarray, distance: np.ndarray) -> Row:
    """The law of the distance by measured final losses (n,), as law.json has it; its errors are at these losses too."""
    laws = left_out(fit_distance_law, losses, distance)
    expected = [law(loss) for law, loss in zip(laws, losses, strict=True)]
    return entry(fit_distance_law(losses, distance), laws, expected / distance - 1)


def rounded(constants: dict[str, float]) -> dict[str, float]:
    """To five digits."""
    return {name: float(f"{value:.5g}") for name, value in constants.items()}


def fit_law(rows: list[Row]) -> Row:
    """All of law.json."""
    (trainings, losses), distance = end_points(rows), distances(rows)
    by_loss = losses[distance > 0], distance[distance > 0]
    ranges = {**asdict(trainings), "loss": by_loss[0].round(4)}
    return {
        "command": "python benchmarks/law/fit.py",
        "curve": fitted(POWER, *curve_points(rows)),
        "end": fitted_end(POWER, rows),
        "distance": fitted_distance(*by_loss),
        "for_comparison": {"product": fitted_end(PRODUCT, rows), "sum": fitted_end(SUM, rows)},
        "ranges": {name: [values.min().item(), values.max().item()] for name, values in ranges.items()},
    }


def forecasts(rows: list[Row], law: Law) -> list[Row]:
    """For each run: its row, the loss at its tenth, what it came to, and the forecast; None where there is none."""
    found = []
    for row in rows:
        own_data = row["data"] == "cifar10"
        start = row["losses"][: tenth(row["steps"])]
        run = Training(row["parameters"], row["steps"], row["batch_size"], row["lr"])
        expected = predict(law, run, WARMUP, start, own_data)
        outcome = {"loss": final_loss(row), "distance": (row["distance"] or {}).get("frechet")}
        found.append(
            {"row": row, "so_far": float(np.mean(start[len(start) // 2 :])), "outcome": outcome, "expected": expected}
        )
    return found


if __name__ == "__main__":
    stored = fit_law(fitted_rows())
    LAW.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(stored, indent=1))
    for found in forecasts(read_rows("held out"), law_from_dict(stored)):
        print(found["row"]["name"], found["outcome"], found["expected"])
