"""What to expect of a training: its time, after the first steps, and its result, after a tenth."""

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median

from minidiff.training.forecast.forecast import Forecast, forecast, tenth
from minidiff.training.log import read_log
from minidiff.training.run import Run
from minidiff.training.step import StepStats

TIMED = 20  # steps after which the time of all others is told


class Expectations:
    """Prints a line after the first TIMED steps of a process, and one after a tenth of the run.

    show  prints a line
    now   the time in seconds
    """

    def __init__(self, run: Run, show: Callable[[str], object], now: Callable[[], float] = time.monotonic):
        self.run, self.show, self.now = run, show, now
        self.times: list[float] = []  # at the ends of the first steps

    def on_step(self, stats: StepStats) -> None:
        """The time after TIMED steps, the forecast after a tenth of all; a run resumed beyond that has none."""
        if len(self.times) < TIMED:
            self.times.append(self.now())
            if len(self.times) == TIMED and (left := self.run.config.steps - stats.step):
                self.show(f"step {stats.step}: {describe_time(self.times, left)}")
        if stats.step == tenth(self.run.config.steps):
            losses = read_log(self.run.folder / "metrics.csv")[1]
            if expected := forecast(self.run, losses):
                self.show(f"step {stats.step}: {describe_forecast(expected, self.run.config.steps)}")

    def on_checkpoint(self, step: int, loss: float) -> None:
        """Nothing: checkpoints change no expectation."""


def describe_time(times: list[float], left: int) -> str:
    """The time of the steps that are left, from the ends of the first ones: by their median, the first left out."""
    seconds = median(b - a for a, b in pairwise(times))
    return f"{seconds:.3g} s a step here; the other {left:,} take about {duration(left * seconds)}, without checkpoints"


def describe_forecast(expected: Forecast, steps: int) -> str:
    """The expected loss and distance, each with its error."""
    loss, error = expected.loss
    text = f"expected at the end: loss {loss:.3f} ± {error:.3f} (mean of the last {tenth(steps):,} steps)"
    if expected.distance:
        text += ", Fréchet distance {:.0f} ± {:.0f}".format(*expected.distance)
    return text


def duration(seconds: float) -> str:
    """A duration in words, rounded to about one hundredth."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 5970:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
