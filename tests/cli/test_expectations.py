"""What minidiff train tells of a run's end: the time after 20 steps, the result after a tenth."""

import re
from types import SimpleNamespace

import pytest
from small_commands import QUICK

from minidiff.cli import expectations
from minidiff.cli.expectations import Expectations, describe_forecast, describe_time, duration
from minidiff.training.forecast.forecast import Estimate, Forecast


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"), (59, "59 s"), (99.4, "99 s"), (100, "2 min"), (754, "13 min"), (5969, "99 min"), (5970, "1.7 h"),
        (47 * 3600, "47.0 h"), (86400 * 2.25, "2.2 days"),
    ],
)  # fmt: skip
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_the_time_is_that_of_the_median_step():
    """Neither the first step, which prepares memory, nor a single slow one counts."""
    times = [100.0, 100.5, 101.0, 131.0, 131.5, 132.0]
    assert describe_time(times, 1200) == "0.5 s a step here; the other 1,200 take about 10 min, without checkpoints"


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """A function that returns the lines of a run of `steps`, of which a process does first ... last, each in 2 s."""
    expected = Forecast(Estimate(0.1234, 0.0051), Estimate(41.3, 6.6))
    monkeypatch.setattr(expectations, "forecast", lambda run, losses: expected if run.config.steps == 500 else None)

    def lines_of(steps, first=1, last=None):
        lines, clock = [], iter(range(0, 10_000, 2))
        run = SimpleNamespace(folder=tmp_path, config=SimpleNamespace(steps=steps))
        report = Expectations(run, lines.append, lambda: next(clock))
        for step in range(first, (last or steps) + 1):
            report.on_step(SimpleNamespace(step=step))
        return lines

    return lines_of


def test_the_time_is_told_once_after_20_steps(shown):
    assert shown(100, last=19) == []
    expected = ["step 20: 2 s a step here; the other 80 take about 3 min, without checkpoints"]
    assert shown(100, last=20) == shown(100) == expected


def test_a_resumed_run_is_timed_anew(shown):
    assert shown(100, first=41) == ["step 60: 2 s a step here; the other 40 take about 80 s, without checkpoints"]


def test_nothing_is_told_of_the_time_that_is_over(shown):
    assert shown(20) == shown(19) == shown(100, first=81) == []


def test_the_result_is_told_once_after_a_tenth(shown):
    expected = "step 50: expected at the end: loss 0.123 ± 0.005 (mean of the last 50 steps), Fréchet distance 41 ± 7"
    assert shown(500)[1:] == [expected]


def test_nothing_is_told_of_the_result_before_a_tenth_and_to_a_run_resumed_after_it(shown):
    assert shown(500, last=49) == shown(500, last=20) and len(shown(500, first=50)) == 2
    assert all("expected at the end" not in line for line in shown(500, first=51))


def test_without_a_distance_the_loss_alone_is_told():
    line = describe_forecast(Forecast(Estimate(0.08, 0.012), None), 600)
    assert line == "expected at the end: loss 0.080 ± 0.012 (mean of the last 60 steps)"


def test_minidiff_train_tells_both(done, data):
    """The forecast of images that are not CIFAR-10's is of the loss alone."""
    options = ("--steps", 120, "--batch-size", 16, "--warmup", 1, "--width", 16, *QUICK)
    out = done("train", data, "--out", "run", *options)
    assert re.search(r"step 12: expected at the end: loss \d\.\d{3} ± \d\.\d{3} \(mean of the last 12 steps\)\n", out)
    assert re.search(r"step 20: \S+ s a step here; the other 100 take about \d+ s, without checkpoints\n", out)
    longer = done("train", "--out", "run", "--resume", "--steps", 150, *QUICK)
    assert "expected at the end" not in longer and "step 140: " in longer
