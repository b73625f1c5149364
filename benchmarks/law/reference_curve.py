"""Reads the loss curve of the recipe small-cpu from its published figure: python benchmarks/law/reference_curve.py

The run of 10,500 steps on 40,000 images of CIFAR-10 is described in docs/training.md; its log is not in the
repository, its figure is. The bold line is the mean of the last 420 losses, so it belongs to the step 210 before. Its
height is read to half a pixel, 0.25 % of the loss, by the grid lines.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
FIGURE = ROOT / "docs" / "images" / "cifar10-loss.png"
CURVE = ROOT / "minidiff" / "training" / "forecast" / "small-cpu.json"
BOLD, GRID = (0xB5, 0x48, 0x2F), (0xE6, 0xE2, 0xDA)  # colours of line and grid
ROWS = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.09, 0.08)  # losses of the horizontal grid lines, from above
COLUMNS = (0, 2000, 4000, 6000, 8000, 10000)  # steps of the vertical ones
WINDOW = 420  # steps of the mean
EVERY = 10  # pixels between two points, 120 steps


def near(pixels: np.ndarray, color: tuple[int, int, int], most: int) -> np.ndarray:
    """Where pixels (H, W, 3) differ from a colour by at most that, the channels' differences summed: (H, W) bool."""
    return np.abs(pixels.astype(int) - np.array(color)).sum(-1) <= most


def read_curve(figure: Path) -> tuple[list[int], list[float]]:
    """Steps and losses of the bold line. Raises ValueError if the grid is not the one that is expected."""
    pixels = np.asarray(Image.open(figure).convert("RGB"))
    grid = near(pixels, GRID, 12)
    rows, columns = np.flatnonzero(grid.sum(1) > 300), np.flatnonzero(grid.sum(0) > 300)
    if (len(rows), len(columns)) != (len(ROWS), len(COLUMNS)):
        raise ValueError(f"{figure}: has {len(rows)} x {len(columns)} grid lines")
    to_log_loss, to_step = np.polyfit(rows, np.log(ROWS), 1), np.polyfit(columns, COLUMNS, 1)
    line = near(pixels, BOLD, 60)
    line[: rows[ROWS.index(0.3)]] = False  # the legend
    found = np.flatnonzero(line.any(0))
    steps, losses = [], []
    for x in range(found[0] + EVERY, found[-1] + 1, EVERY):
        steps.append(round(np.polyval(to_step, x) - WINDOW / 2))
        losses.append(round(float(np.exp(np.polyval(to_log_loss, np.flatnonzero(line[:, x]).mean()))), 4))
    return steps, losses


if __name__ == "__main__":
    steps, losses = read_curve(FIGURE)
    curve = {
        "run": "10,500 steps of the recipe on 40,000 images of CIFAR-10 (docs/training.md)",
        "command": "python benchmarks/law/reference_curve.py",
        "steps": steps,
        "losses": losses,
    }
    CURVE.write_text(json.dumps(curve) + "\n", encoding="utf-8")
    print(f"{CURVE}: {len(steps)} points, {losses[0]} to {losses[-1]}")
