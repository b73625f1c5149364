"""The forecast after a tenth of a run: on synthetic curves whose end is known, and on which runs there is none."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_runs import network as tiny

from minidiff.data.cifar10 import CLASSES
from minidiff.diffusion.schedule import linear_schedule
from minidiff.models.default_configs import default_config
from minidiff.training.config import TrainConfig
from minidiff.training.forecast import forecast as forecasts
from minidiff.training.forecast.distance_law import DistanceLaw
from minidiff.training.forecast.forecast import Law, fitted_law, forecast, predict, tenth, windows
from minidiff.training.forecast.power_law import PowerLaw, Training, counted
from minidiff.training.kinds.unet_run import UNetRun
from minidiff.training.kinds.vae_run import VAERun, default_vae
from minidiff.training.recipes import SCHEDULE

LAW = Law(
    curve=PowerLaw(0.105, 0.015, 0.7, 0.015, 0.6, 12.0, 0.5),
    end=PowerLaw(0.095, 0.015, 0.7, 0.015, 0.6, 12.0, 0.5),
    distance=DistanceLaw(1300.0, 0.128, 0.01),
    errors={"curve": 0.01, "end": 0.01, "distance": 0.05},
    ranges={"loss": [0.09, 0.3]},
)
RUN, WARMUP, NOISE = Training(7e5, 4000, 32, 1e-3), 50, 0.13  # of a step's loss, about as measured


def after(steps):
    return replace(RUN, steps=counted(steps, WARMUP))


def losses_of(steps, m=1.0, c=1.0, seed=0):
    """The losses of the first tenth of a run that follows the law, but for the factors m and c, and their noise."""
    noise = 1 + NOISE * np.random.default_rng(seed).standard_normal(tenth(steps))
    return list(c * LAW.curve(after(np.arange(1, tenth(steps) + 1)), m) * noise)


def after_a_tenth(steps, losses, own_data=True, law=LAW):
    return predict(law, replace(RUN, steps=steps), WARMUP, losses, own_data)


@pytest.mark.parametrize("m", [0.8, 1.0, 1.25])
def test_a_run_that_learns_faster_or_slower_than_the_law(m):
    """Its own curve says so: the forecast is nearer to its end than the law alone, unless that is right."""
    steps = 4000
    loss, alone = LAW.end(after(steps), m), LAW.end(after(steps))
    expected = [after_a_tenth(steps, losses_of(steps, m, seed=seed)) for seed in range(5)]
    assert np.mean([one.loss.value for one in expected]) == pytest.approx(loss, rel=0.015)
    assert np.mean([one.distance.value for one in expected]) == pytest.approx(LAW.distance(loss), rel=0.15)
    assert m == 1 or all(abs(one.loss.value - loss) < abs(alone - loss) for one in expected)


@pytest.mark.parametrize("c", [0.8, 1.2])
def test_another_dataset_whose_loss_is_lower_or_higher(c):
    """The root of the factor is left at the end, as far as the windows show it."""
    steps = 4000
    alone = LAW.end(after(steps))
    for seed in range(5):
        expected = after_a_tenth(steps, losses_of(steps, 1.0, c, seed), own_data=False)
        assert expected.loss.value == pytest.approx(c**0.5 * alone, rel=0.05)
        assert expected.distance is None


def test_the_error_is_that_of_the_forecast():
    """Over runs whose factors come from the priors, the error in standard errors has a root mean square of 1."""
    rng, steps = np.random.default_rng(3), 2000
    scores = []
    for seed in range(150):
        m, c = np.exp(rng.standard_normal(2) * (forecasts.SIGMA_M, forecasts.SIGMA_C))
        expected = after_a_tenth(steps, losses_of(steps, m, c, seed), own_data=False).loss
        error = math.hypot(LAW.errors["end"], forecasts.ELSEWHERE)
        truth = c**forecasts.KEPT * LAW.end(after(steps), m) * math.exp(error * rng.standard_normal())
        scores.append((expected.value - truth) / expected.error)
    assert 0.8 < np.sqrt(np.mean(np.square(scores))) < 1.25


def test_the_errors_of_own_curve_and_law_add_up_as_squares():
    """An error of the law of the loss is one of the distance too, by the slope of the distance."""
    steps, errors = 2000, {"curve": 0.01, "end": 0.02, "distance": 0.3}
    exact, inexact = (
        after_a_tenth(steps, losses_of(steps), law=law)
        for law in (replace(LAW, errors=errors | {"end": 0.0, "distance": 0.0}), replace(LAW, errors=errors))
    )
    loss = exact.loss.value
    by_loss = LAW.distance(loss * 1.02) / LAW.distance(loss) - 1
    assert by_loss > 0.06
    for name, of_law in (("loss", 0.02), ("distance", math.hypot(0.3, by_loss))):
        (value, own), (same, both) = getattr(exact, name), getattr(inexact, name)
        assert value == same and both == pytest.approx(value * math.hypot(own / value, of_law))


def test_before_the_warm_up_is_over_the_law_alone_is_the_forecast():
    """Of its own dataset: the prior of m then gives the error; of another there is no forecast."""
    steps = 400
    expected = after_a_tenth(steps, losses_of(steps))
    assert expected == after_a_tenth(steps, losses_of(steps, m=3, seed=1))
    assert expected.loss.value == pytest.approx(LAW.end(after(steps)), rel=0.03)
    assert expected.loss.error > LAW.errors["end"] * expected.loss.value
    assert after_a_tenth(steps, losses_of(steps), own_data=False) is None


def test_losses_after_the_tenth_and_of_the_warm_up_are_not_used():
    steps = 2000
    losses = losses_of(steps)
    changed = [9.0] * 71 + losses[71:] + [0.01] * 100
    assert after_a_tenth(steps, changed) == after_a_tenth(steps, losses)


def test_a_loss_that_is_not_finite():
    assert after_a_tenth(2000, [*losses_of(2000)[:-1], math.nan]) is None


def test_windows():
    """From a quarter of the tenth on, or from 1.4 warm-ups on."""
    assert windows(2000, 50) == [(72, 100), (101, 141), (142, 200)]
    assert windows(4000, 50)[0][0] == 101 and windows(4000, 50)[-1][1] == 400
    assert windows(800, 50) == [(72, 80)] and windows(800, 0) == [(21, 32), (33, 50), (51, 80)]
    assert windows(780, 50) == windows(9, 0) == windows(1, 50) == []


def run_of(width=8, shape=(32, 32, 3), schedule=SCHEDULE, **settings):
    config = TrainConfig("data", backend="numpy", **{"classes": CLASSES, "steps": 1000, **settings})
    network = default_config(shape, width, len(config.classes) + 1 if config.classes else None)
    return UNetRun.build(Path("run"), config, network, schedule, rng=None)


def test_the_law_of_the_package():
    """Its forecast for CIFAR-10 has a distance, for other images none; the end lies below the curve."""
    law = fitted_law()
    losses = [law.curve(Training(1.7e5, step, 32, 1e-3)) for step in range(1, 101)]
    expected = forecast(run_of(), losses)
    assert expected.loss.value < losses[-1] and expected.distance.value > 0
    assert forecast(run_of(shape=(28, 28, 1)), losses).distance is None
    assert forecast(run_of(classes=("cat", "dog")), losses).distance is None


@pytest.mark.parametrize(
    "settings",
    [
        {"decay": "none"}, {"min_snr": 5}, {"schedule": linear_schedule(1000, 1e-4, 0.02)}, {"steps": 10},
        {"schedule": replace(SCHEDULE, prediction_type="epsilon")}, {"steps": 10**6}, {"batch_size": 65536},
        {"consistency": 4}, {"optimizer": "muon"}, {"lr": 5e-3}, {"lr": 2e-4},
    ],
)  # fmt: skip
def test_runs_of_other_settings_have_no_forecast(settings):
    assert forecast(run_of(**settings), [0.3] * 10**5) is None


def test_runs_of_other_kinds_and_sizes_have_no_forecast():
    config = TrainConfig("data", backend="numpy", steps=1000)
    vae = VAERun.build(Path("run"), config, default_vae((32, 32, 3)), rng=None)
    small = UNetRun.build(Path("run"), config, tiny(), SCHEDULE, rng=None)
    assert forecast(vae, [0.3] * 100) is forecast(small, [0.3] * 100) is None
