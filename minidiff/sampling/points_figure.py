"""The figure of a model of points: data beside samples, their densities, trajectories, and the score field."""

from typing import Any

import numpy as np
from PIL.Image import Image

from minidiff.data.dataset import Dataset
from minidiff.data.imaging import new_figure, rendered
from minidiff.sampling.points import PointSampler

SHOWN = 60  # trajectories
NOISE = 0.2  # noise level of the 2-D score field: standard deviation sqrt(1 - alpha_bar)
LIMIT = 1.6  # the axes show [-LIMIT, LIMIT]
BINS = np.linspace(-LIMIT, LIMIT, 65)
COLOURS = np.array(["#b5482f", "#3f6f8f", "#7a8f3f", "#8f5f9f"])  # of the classes, in turn
PALE, LINES = "#e9a96b", "#e6e2da"


def points_figure(
    net: PointSampler, data: Dataset, trajectories: np.ndarray, labels: np.ndarray | None = None
) -> Image:
    """The figure of samples, the last state of their trajectories (steps + 1, N, 1, 1, D), D = 1 or 2, beside data.

    labels (N,): of a class-conditional model. The score is of their class if all are equal, else of the null class.
    """
    x_0, states = data.take(np.arange(len(data)))[:, 0, 0], trajectories[:, :, 0, 0]  # (M, D), (steps + 1, N, D)
    label = None if labels is None or np.ptp(labels) else int(labels[0])
    if states.shape[2] == 1:
        return _figure_1d(net, x_0[:, 0], states[:, :, 0], label)
    figure = new_figure(10, 6.8)
    scatters, densities = figure.subplots(2, 3, sharex=True, sharey=True)
    classes = None if labels is None else data.labels
    for column, (title, x, which) in enumerate((("Data", x_0, classes), ("Samples", states[-1], labels))):
        shown = slice(len(states[0]))  # as many of the data as there are samples
        colour = COLOURS[0] if which is None else COLOURS[which[shown] % len(COLOURS)]
        _titled(scatters[column], title).scatter(*x[shown].T, s=2, c=colour, linewidths=0)
        _titled(densities[column], f"Density of the {title.lower()}").hist2d(*x.T, bins=[BINS, BINS], cmap="YlOrBr")
    axes = _titled(scatters[2], "Trajectories")
    axes.plot(*states[:, :SHOWN].transpose(2, 0, 1), color=PALE, linewidth=0.7)
    axes.scatter(*states[-1, :SHOWN].T, s=6, color=COLOURS[0], zorder=2)
    _quiver(densities[2], net, label)
    scatters[0].set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT))
    for axes in figure.axes:
        axes.set_aspect("equal")
    return rendered(figure)


def _quiver(axes: Any, net: PointSampler, label: int | None) -> None:
    """The score field in 2-D, at the sampling step whose noise level is nearest to NOISE."""
    step = int(np.abs(net.noise - NOISE).argmin())
    side = np.linspace(-1.2, 1.2, 27, dtype=np.float32)  # the arrows further out are long, and all point inward
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 1, 1, 2)  # (M, 1, 1, 2)
    score = net.score(grid, step, label)
    title = f"Score field at noise level {net.noise[step]:.2f}"
    _titled(axes, title).quiver(*grid[:, 0, 0].T, *score[:, 0, 0].T, color=COLOURS[0], width=0.003)


def _figure_1d(net: PointSampler, x_0: np.ndarray, states: np.ndarray, label: int | None) -> Image:
    """x_0 (M,): the data; states (steps + 1, N). Trajectories and score field have the sampling steps as one axis."""
    figure = new_figure(12, 3.8)
    density, lines, field = figure.subplots(1, 3)
    _titled(density, "Density").hist(x_0, BINS, density=True, color=PALE, label="data")
    density.hist(states[-1], BINS, density=True, histtype="step", color=COLOURS[0], linewidth=1.5, label="samples")
    density.set(xlabel="x")
    density.legend(frameon=False)
    _titled(lines, "Trajectories").plot(states[:, :SHOWN], color=COLOURS[0], alpha=0.5, linewidth=0.7)
    side = np.linspace(-LIMIT, LIMIT, 129, dtype=np.float32)
    x = side.reshape(-1, 1, 1, 1)
    scores = np.stack([noise * net.score(x, step, label).ravel() for step, noise in enumerate(net.noise)], 1)
    mesh = field.pcolormesh(np.arange(net.steps), side, scores, cmap="RdBu", vmin=-3, vmax=3)
    _titled(field, "Score field, times the noise level")
    figure.colorbar(mesh, ax=field)
    for axes in (lines, field):
        axes.set(xlabel="sampling step", ylabel="x_t", ylim=(-LIMIT, LIMIT))
    return rendered(figure)


def _titled(axes: Any, title: str) -> Any:
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=LINES, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes
