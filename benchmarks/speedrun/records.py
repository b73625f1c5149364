"""The ledger of the speedrun and the paces, a JSON object a line, and their tables for docs/speedrun.md."""

import json
from pathlib import Path
from typing import Any

LEDGER = Path(__file__).with_name("ledger.jsonl")
PACES = Path(__file__).with_name("paces.jsonl")
FIGURES = ("frechet", "kid", "precision", "recall", "agreement", "nearest")
HEADER = ("distance", "KID", "precision", "recall", "agreement", "nearest")


def read_ledger(path: Path = LEDGER) -> list[dict[str, Any]]:
    """The rows of the ledger, the oldest first."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def append(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a ledger."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def records(minutes: float, path: Path = LEDGER) -> str:
    """The final scores of a track as a table in Markdown, the best first."""
    rows = [row for row in read_ledger(path) if row["score"] == "final" and row["minutes"] == minutes]
    rows.sort(key=lambda row: row["samples"]["frechet"])
    return (
        _table(rows, ("recipe", "seed", "steps", "commit")) if rows else f"No final score of {minutes:g} minutes yet."
    )


def every_row(path: Path = LEDGER) -> str:
    """All rows of the ledger as a table in Markdown, in their order."""
    rows = read_ledger(path)
    return _table(rows, ("recipe", "seed", "minutes", "score")) if rows else "No row yet."


def _table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    """Columns and figures of the rows; the last line has those of real images, from the newest row."""
    lines = [[str(row[column]) for column in columns] + _figures(row["samples"]) for row in rows]
    real = ["real images"] + [""] * (len(columns) - 1) + _figures(max(rows, key=lambda row: row["date"])["real"])
    header = [*columns, *HEADER]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines, real))


def _figures(figures: dict[str, float]) -> list[str]:
    return [f"{figures[name]:.3g}" for name in FIGURES]
