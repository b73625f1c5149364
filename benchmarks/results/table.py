"""A Markdown table of what `minidiff bench ... --json FILE` measured: python benchmarks/results/table.py FILE [...].

Milliseconds of the best round of each side, and in brackets its time divided by ours.
"""

import json
import sys
from pathlib import Path
from typing import Any


def table(rows: list[dict[str, Any]]) -> str:
    """One line a case, one column for each side of any case; a dash for what was not measured."""
    sides = list(dict.fromkeys(side for row in rows for side in row["seconds"]))
    lines = [f"| work | {' | '.join(sides)} |", "|---" * (len(sides) + 1) + "|"]
    for row in rows:
        best = {side: min(seconds) for side, seconds in row["seconds"].items()}
        cells = (_cell(best[side], best["ours"], side) if side in best else "–" for side in sides)
        lines.append(f"| {row['family']}: {row['case']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(seconds: float, ours: float, side: str) -> str:
    ratio = "" if side == "ours" else f" ({seconds / ours:.2f})"
    return f"{1e3 * seconds:.3g}{ratio}" if seconds < 1 else f"{1e3 * seconds:.0f}{ratio}"


if __name__ == "__main__":
    print(table([row for file in sys.argv[1:] for row in json.loads(Path(file).read_text())["rows"]]))
