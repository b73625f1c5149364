"""The tables and the figure of docs/law.md, from the ledger and the fitted law."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from fit import Row, final_loss, forecasts, images, read_rows, training
from matplotlib.figure import Figure

from minidiff.training.forecast.forecast import Law, law_from_dict

Stored = dict[str, Any]  # law.json
BUDGETS = (1, 2, 5, 10)  # minutes of processor time
MINUTES = (0.5, 1, 2, 5, 10)  # on the axes of the figure, with LOSSES
LOSSES = (0.12, 0.15, 0.2, 0.3)
NBSP = "\N{NO-BREAK SPACE}"
WITHIN = 0.15  # relative error of a forecast that holds
STYLES = {  # for a light and a dark page: text, grid, colours of the widths
    False: ("#46424a", "#e6e2da", ("#e0a15e", "#6f9fb5", "#b5482f")),
    True: ("#d8d4cc", "#3a3a40", ("#e9b878", "#8fc1d8", "#ee8a6a")),
}


def table(header: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines))


def measured() -> str:
    """Final loss and distance of the runs of the grid, a line a width, a column a length."""
    rows = sorted(read_rows("grid"), key=lambda row: (row["width"], row["steps"]))
    lengths = sorted({images(row) for row in rows})
    lines = []
    for width in sorted({row["width"] for row in rows}):
        own = [row for row in rows if row["width"] == width]
        cells = [f"{row['distance']['frechet']:.1f} ({final_loss(row):.3f})" for row in own]
        time = np.mean([1000 * row["seconds_per_step"] / row["batch_size"] for row in own])
        lines.append([str(width), f"{own[0]['parameters']:,}", f"{time:.1f} ms", *cells])
    return table(["width", "parameters", "an image", *(f"{n:,} images" for n in lengths)], lines)


def constants(stored: Stored) -> str:
    """The constants of the power laws in use with their standard errors, and the laws' errors."""
    titles = {"end": "final loss", "curve": "loss at a constant rate"}
    lines = [[title, *_constants(stored[name])] for name, title in titles.items()]
    return table(["", "$E$", "$A$", r"$\alpha$", "$B$", r"$\beta$", "$b$", r"$\delta$", "error"], lines)


def distance_constants(stored: Stored) -> str:
    """The same of the distance by the loss."""
    return table(
        ["", "slope $a$", "middle $L_0$", "width $w$", "error"], [["distance", *_constants(stored["distance"])]]
    )


def comparison(stored: Stored) -> str:
    """The errors of the law in use and of others: of the final loss, and of the distance by the loss they expect."""
    entries = {r"$E + (A\,N^{-\alpha} + B)\,D^{-\beta}$": stored["end"]}
    entries[r"$E + A\,N^{-\alpha} D^{-\beta}$"] = stored["for_comparison"]["product"]
    entries[r"$E + A\,N^{-\alpha} + B\,D^{-\beta}$"] = stored["for_comparison"]["sum"]
    lines = [[name, _percent(entry["error"]), _percent(entry["error_of_distance"])] for name, entry in entries.items()]
    return table(["law", "final loss", "distance"], lines)


def _number(value: float, digits: int) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.{digits}g}"


def _percent(error: float) -> str:
    return f"{100 * error:.1f} %"


def _constants(entry: Stored) -> list[str]:
    of, errors = entry["constants"], entry["standard_errors"]
    return [*(f"{_number(of[name], 3)} ± {_number(errors[name], 2)}" for name in of), _percent(entry["error"])]


def budgets(law: Law) -> str:
    """The distance that each width reaches in a budget, by the law; the smallest of a line is bold."""
    rows = read_rows("grid")
    widths = sorted({row["width"] for row in rows})
    lines = []
    for minutes in BUDGETS:
        distances = []
        for width in widths:
            own = [row for row in rows if row["width"] == width]
            steps = 60 * minutes / np.mean([row["seconds_per_step"] for row in own])
            distances.append(float(law.distance(law.end(training(own[0], float(steps))))))
        cells = [f"**{d:.1f}**" if d == min(distances) else f"{d:.1f}" for d in distances]
        lines.append([f"{minutes} min", *cells])
    return table(["processor time", *(f"width {width}" for width in widths)], lines)


def held_out(stored: Stored) -> str:
    """The forecasts for the runs that the law was not fitted to, with their outcomes."""
    lines = []
    for found in forecasts(read_rows("held out"), law_from_dict(stored)):
        row, expected = found["row"], found["expected"]
        cells = [str(row["width"]), f"{row['steps']}{NBSP}x{NBSP}{row['batch_size']}", f"{row['lr']:g}"]
        for name in ("loss", "distance"):
            cells += _outcome(expected and getattr(expected, name), found["outcome"][name])
        lines.append(cells)
    names = ["width", "steps x batch", "rate"]
    return table([*names, "loss expected", "came to", "error", "distance expected", "came to", "error"], lines)


def hits(stored: Stored) -> str:
    """In how many of these runs the forecasts were within WITHIN of their outcomes."""
    found = forecasts(read_rows("held out"), law_from_dict(stored))
    counts = []
    for name in ("loss", "distance"):
        told = [(getattr(one["expected"], name), one["outcome"][name]) for one in found]
        errors = [expected.value / outcome - 1 for expected, outcome in told if expected]
        counts.append(f"the {name} in {sum(abs(error) <= WITHIN for error in errors)} of {len(errors)} runs")
    return f"Within {100 * WITHIN:.0f} % of their outcomes: {counts[0]}, {counts[1]}."


def _outcome(expected: Any, outcome: float | None) -> list[str]:
    """What was expected, what it came to, and the relative error, bold where it is above WITHIN."""
    if outcome is None or expected is None:
        return ["none", "" if outcome is None else f"{outcome:.3g}", ""]
    error = expected.value / outcome - 1
    shown = f"{100 * error:+.0f}{NBSP}%"
    return [
        f"{expected.value:.3g} ± {expected.error:.2g}".replace(" ", NBSP),
        f"{outcome:.3g}",
        shown if abs(error) <= WITHIN else f"**{shown}**",
    ]


def figure(law: Law, dark: bool) -> Figure:
    """Distances, measured and by the law: against images seen, processor time and final loss, a colour a width."""
    rows = read_rows("grid")
    drawn, panels = plt.subplots(1, 3, figsize=(12, 4), layout="constrained", sharey=True, facecolor="none")
    for width, color in zip(sorted({row["width"] for row in rows}), STYLES[dark][2], strict=True):
        own = sorted((row for row in rows if row["width"] == width), key=images)
        _plot_width(panels, law, own, color)
    losses = np.geomspace(min(map(final_loss, rows)), max(map(final_loss, rows)), 60)
    panels[2].plot(losses, law.distance(losses), color=STYLES[dark][0], linewidth=1.5)
    ticks = sorted({images(row) for row in rows}), MINUTES, LOSSES
    for axes, label, values in zip(
        panels, ("images seen", "minutes of processor time", "final loss"), ticks, strict=True
    ):
        axes.set(xscale="log", yscale="log", xlabel=label, facecolor="none")
        axes.set_xticks(values, [f"{value:,}" for value in values])
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(lambda y, position: f"{y:g}" if f"{y:e}"[0] in "235" else "")
        _colour(axes, *STYLES[dark][:2])
    panels[0].set_ylabel("Fréchet distance", color=STYLES[dark][0])
    panels[2].legend(*panels[0].get_legend_handles_labels(), frameon=False, labelcolor=STYLES[dark][0], loc=4)
    return drawn


def _plot_width(panels: np.ndarray, law: Law, own: list[Row], color: str) -> None:
    """The runs of one width in the three panels, and in the first two the law."""
    seconds = np.mean([row["seconds_per_step"] / row["batch_size"] for row in own])
    seen = np.geomspace(images(own[0]) / 1.3, images(own[-1]) * 1.3, 60)
    expected = law.distance(law.end(training(own[0], seen / own[0]["batch_size"])))
    distances = [row["distance"]["frechet"] for row in own]
    for axes, scale in zip(panels[:2], (1, seconds / 60), strict=True):
        axes.plot(seen * scale, expected, color=color, linewidth=1.5)
        label = f"width {own[0]['width']}: {own[0]['parameters'] / 1e6:.2f} million parameters"
        axes.plot([images(row) * scale for row in own], distances, "o", color=color, label=label)
    panels[2].plot([final_loss(row) for row in own], distances, "o", color=color, zorder=3)


def _colour(axes: Any, ink: str, grid: str) -> None:
    """Axes in the colours of a page."""
    axes.grid(which="both", color=grid, linewidth=0.6)
    axes.tick_params(which="both", colors=ink)
    axes.xaxis.label.set_color(ink)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(ink)
