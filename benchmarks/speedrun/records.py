"""The ledger of the speedrun and the paces, a JSON object a line, and their tables for docs/speedrun.md."""

import json
from pathlib import Path
from typing import Any

LEDGER = Path(__file__).with_name("ledger.jsonl")
PACES = Path(__file__).with_name("paces.jsonl")
FIGURES = ("frechet", "kid", "precision", "recall", "agreement", "nearest")
PACE = ("recipe", "minutes", "ms", "steps", "commit")
WITHIN = 0.15  # relative error of a forecast that holds
HEADER = ("distance", "KID", "precision", "recall", "agreement", "nearest")


def read_ledger(path: Path = LEDGER) -> list[dict[str, Any]]:
    """The rows of the ledger, the oldest first."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def append(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a ledger."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def records(minutes: float, path: Path = LEDGER) -> str:
    """The final scores within a budget as a table in Markdown, the best first."""
    rows = [row for row in read_ledger(path) if row["score"] == "final" and row["minutes"] <= minutes]
    rows.sort(key=lambda row: row["samples"]["frechet"])
    columns = ("recipe", "sampling", "minutes", "seed", "commit")
    return _table(rows, columns) if rows else f"No final score within {minutes:g} minutes yet."


def every_row(path: Path = LEDGER) -> str:
    """All rows of the ledger as a table in Markdown, in their order."""
    rows = read_ledger(path)
    return _table(rows, ("recipe", "sampling", "minutes", "steps", "seed", "score", "n")) if rows else "No row yet."


def paces(path: Path = PACES) -> str:
    """The paces that were measured, in their order."""
    rows = read_ledger(path)
    lines = [[*(str(row[column]) for column in PACE), "{} to {}".format(*row["gflops"][::2])] for row in rows]
    return _markdown([*PACE, "GFLOP/s"], lines)


def forecasts(path: Path = LEDGER) -> str:
    """What was forecast of each run after its tenth, and what it came to."""
    rows = [row for row in read_ledger(path) if row.get("forecast") and row["sampling"] == "ddim-25"]
    rows = list({(row["recipe"], row["steps"], row["seed"]): row for row in rows}.values())  # the last score of each
    if not rows:
        return "No run with a forecast yet."
    lines = [
        [
            *(str(row[column]) for column in ("recipe", "steps", "seed")),
            *_forecast(row["forecast"].get("loss"), row["loss"], 3),
            *_forecast(row["forecast"].get("distance"), row["samples"]["frechet"], 1),
        ]
        for row in rows
    ]
    header = ["recipe", "steps", "seed", "loss expected", "came to", "error", "distance expected", "came to", "error"]
    return _markdown(header, lines)


def _forecast(expected: list[float] | None, outcome: float, digits: int) -> list[str]:
    """An expected value with its standard error, the outcome, and the relative error, bold where it is above WITHIN."""
    if expected is None:
        return ["", f"{outcome:.{digits}f}", ""]
    value, standard_error = expected
    error = value / outcome - 1
    shown = f"{error:+.0%}" if abs(error) <= WITHIN else f"**{error:+.0%}**"
    return [f"{value:.{digits}f} ± {standard_error:.{digits}f}", f"{outcome:.{digits}f}", shown]


def _table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    """Columns and figures of the rows; the last line has those of real images, from the newest row."""
    lines = [[str(row[column]) for column in columns] + _figures(row["samples"]) for row in rows]
    real = ["real images"] + [""] * (len(columns) - 1) + _figures(max(rows, key=lambda row: row["date"])["real"])
    return _markdown([*columns, *HEADER], [*lines, real])


def _markdown(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines))


def _figures(figures: dict[str, float]) -> list[str]:
    return [f"{figures[name]:.3g}" for name in FIGURES]
