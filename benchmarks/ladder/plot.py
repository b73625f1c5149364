"""Plots and tables of the results that `make ladder ARGS="--json FILE"` writes."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt


def ladder_of(path: str | Path, op: str) -> dict[str, Any]:
    """One ladder of the file."""
    return next(ladder for ladder in json.loads(Path(path).read_text())["ladders"] if ladder["op"] == op)


def machine(path: str | Path) -> str:
    """The machine of the measurement, in one line."""
    facts = json.loads(Path(path).read_text())["machine"]
    return ", ".join(f"{name} {facts[name]}" for name in ("processor", "threads", "NumPy", "Numba", "torch"))


def figure(path: str | Path, op: str):
    """A bar chart of the minimum times, on a logarithmic scale, labelled with times and error."""
    rows = ladder_of(path, op)["rows"]
    fig, ax = plt.subplots(figsize=(8, 0.5 * len(rows) + 0.8), layout="constrained")
    minima = [row["ms"][0] for row in rows]
    ax.barh(range(len(rows)), minima, color=["#a8452a" if "torch" in row else "#999999" for row in rows])
    for position, row in enumerate(rows):
        note = f"  {row['ms'][0]:.1f} | {row['ms'][1]:.1f} ms, error {row['error']:.1e}"
        ax.text(row["ms"][0], position, note, va="center", fontsize=9)
    ax.set_yticks(range(len(rows)), [row["name"] for row in rows])
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.set_xlim(min(minima) / 2, max(minima) * 20)
    ax.set_xlabel("Time in ms, minimum of all rounds")
    ax.spines[["top", "right"]].set_visible(False)
    return fig


def table(path: str | Path, op: str) -> str:
    """The ladder in Markdown; pairs of values are of minimum and median."""
    ladder = ladder_of(path, op)
    rate = {"FLOP/s": "GFLOP/s", "B/s": "GB/s"}[ladder["unit"]]
    lines = [
        f"| {ladder['label']} | ms | {rate} | to the rung before | to torch | error |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in ladder["rows"]:
        times, before, torch = (
            " / ".join(f"{number:.3g}" for number in row.get(key, ())) for key in ("ms", "before", "torch")
        )
        cells = (row["name"], times, f"{row['rate'] / 1e9:.3g}", before, torch, f"{row['error']:.1e}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
