"""The forecast: the loss and the distance that a run will end with, from its first tenth and the law.

The law (power_law.py) says what a network of N parameters reaches after some progress D. Another run may differ in two
ways, which its own curve shows: it learns m times as much from a step as the law's runs do, and on another dataset its
loss is c times theirs at first, of which at the end about the root is left. So

    loss = c L(N, m D) in the first tenth, c^KEPT L(N, m D) at the end

Both factors are inferred from the losses of the first tenth: c and m on a grid, with a normal prior for their
logarithms and a normal likelihood for the logarithm of the mean loss in each of a few windows. The forecast is the mean
of the logarithm over this posterior; its error has two parts, the posterior's standard deviation and the law's error.
"""

import json
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minidiff.formats.schedulers import schedule_to_config
from minidiff.training.forecast.distance_law import DistanceLaw
from minidiff.training.forecast.power_law import PowerLaw, Training, counted
from minidiff.training.forecast.reference_curves import on_cifar10
from minidiff.training.kinds.unet_run import UNetRun
from minidiff.training.recipes import SCHEDULE
from minidiff.training.run import Run

LAW = Path(__file__).with_name("law.json")
WINDOWS = 3  # at most, each longer than the one before by the same factor
AFTER_WARMUP = 2**0.5  # times the warm-up: from this step on the loss follows a power of the images seen
FEWEST = 8  # steps in a window, about
SIGMA_M, SIGMA_C = 0.1, 0.2  # standard deviations of log m and log c: of their priors
KEPT, ELSEWHERE = 0.5, 0.1  # of log c at the end of a run, and the relative error of that
SPAN, POINTS = 3.0, 61  # of the grid: standard deviations to each side, and points
BEYOND = {"parameters": 4.0, "steps": 4.0, "batch_size": 4.0, "lr": 2.0}  # factors outside of the law's ranges
NEAR = 1.05  # the same for the loss from which the distance follows


class Estimate(NamedTuple):
    """An expected value and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Forecast:
    """The expected loss, the mean over the last tenth of the steps, and the expected distance.

    The distance is the speedrun's, of 1,000 samples; None for another dataset than CIFAR-10, and for an expected loss
    outside of the law's range.
    """

    loss: Estimate
    distance: Estimate | None


@dataclass(frozen=True)
class Law:
    """What was fitted, as in law.json, by benchmarks/law/fit.py.

    curve     the training loss at a constant learning rate
    end       the mean loss over the last tenth of a run, in whose second half the learning rate decays
    distance  the Frechet distance at the end, from the loss by `end`
    errors    of the three: the relative errors at points that the fits did not see, root mean square
    ranges    smallest and largest number of parameters, counted steps, batch size, rate, and final loss with a distance
    """

    curve: PowerLaw
    end: PowerLaw
    distance: DistanceLaw
    errors: dict[str, float]
    ranges: dict[str, list[float]]


@lru_cache(maxsize=1)
def fitted_law() -> Law:
    """The law of law.json."""
    stored = json.loads(LAW.read_text(encoding="utf-8"))
    return law_from_dict(stored)


def law_from_dict(stored: dict[str, Any]) -> Law:
    """The law of law.json's content."""
    curve, end = (PowerLaw(**stored[name]["constants"]) for name in ("curve", "end"))
    errors = {name: stored[name]["error"] for name in ("curve", "end", "distance")}
    return Law(curve, end, DistanceLaw(**stored["distance"]["constants"]), errors, stored["ranges"])


def tenth(steps: int) -> int:
    """The number of steps in a tenth of them."""
    return steps // 10


def windows(steps: int, warmup: int) -> list[tuple[int, int]]:
    """The first and the last step of each window: the later three quarters of the first tenth, after the warm-up.

    Empty if the run is too short for one.
    """
    last = tenth(steps)
    first = max(last / 4, AFTER_WARMUP * warmup)
    if last - first < FEWEST:
        return []
    count = min(WINDOWS, int((last - first) / FEWEST))
    edges = np.rint(np.geomspace(first, last, count + 1)).astype(int)
    return [(int(a) + 1, int(b)) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def forecast(run: Run, losses: list[float]) -> Forecast | None:
    """The forecast for a run, whose losses (n,) are at least those of its first tenth; None without ground for one.

    There is ground for the U-Net of a diffusion model with the default schedule, prediction type, optimiser and decay
    of the learning rate, of a size, length, batch size and rate near the law's ranges. On another dataset than CIFAR-10
    its warm-up must be over, too.
    """
    law, config = fitted_law(), run.config
    if not isinstance(run, UNetRun) or schedule_to_config(run.schedule) != schedule_to_config(SCHEDULE):
        return None
    if config.consistency or config.decay != "cosine" or config.min_snr is not None or config.learned_variance:
        return None
    if config.optimizer != "adamw":
        return None
    training = Training(run.optimizer.p.size, config.steps, config.batch_size, config.lr)
    whole = replace(training, steps=counted(config.steps, config.warmup))
    for name, factor in BEYOND.items():
        low, high = law.ranges[name]
        if not low / factor <= getattr(whole, name) <= high * factor:
            return None
    return predict(law, training, config.warmup, losses, on_cifar10(run))


def predict(law: Law, training: Training, warmup: int, losses: list[float], own_data: bool) -> Forecast | None:
    """The forecast from the losses of the first tenth of a training; own_data: the law's dataset, so c = 1.

    None if no window lies after the warm-up, unless own_data: then the law alone is the forecast.
    """
    steps = int(training.steps)
    after = windows(steps, warmup)
    if not after and not own_data:
        return None
    log_m = SIGMA_M * np.linspace(-SPAN, SPAN, POINTS)
    log_c = np.zeros(1) if own_data else SIGMA_C * np.linspace(-SPAN, SPAN, POINTS)
    m, c = np.exp(log_m), log_c[:, None]  # (M,), (C, 1)
    log_posterior = -((log_m / SIGMA_M) ** 2 + (c / SIGMA_C) ** 2) / 2  # (C, M)
    for first, last in after:
        some = np.array(losses[first - 1 : last])
        if not np.isfinite(some).all():
            return None
        middle = replace(training, steps=counted(math.sqrt((first - 1) * last), warmup))
        error = math.hypot(some.std() / some.mean() / math.sqrt(len(some)), law.errors["curve"])
        log_posterior -= ((math.log(some.mean()) - c - np.log(law.curve(middle, m))) / error) ** 2 / 2
    posterior = np.exp(log_posterior - log_posterior.max())
    posterior /= posterior.sum()
    end = law.end(replace(training, steps=counted(steps, warmup)), m)  # (M,), the final losses with c = 1
    law_error = math.hypot(law.errors["end"], 0 if own_data else ELSEWHERE)
    loss = _estimate(posterior, KEPT * c + np.log(end), law_error)
    low, high = law.ranges["loss"]
    if not own_data or not low / NEAR <= loss.value <= high * NEAR:
        return Forecast(loss, None)
    by_loss = law.distance(loss.value * (1 + law.errors["end"])) / law.distance(loss.value) - 1
    return Forecast(loss, _estimate(posterior, np.log(law.distance(end)), math.hypot(by_loss, law.errors["distance"])))


def _estimate(posterior: np.ndarray, logarithms: np.ndarray, law_error: float) -> Estimate:
    """The estimate of exp(logarithms) under a posterior, both of broadcast shape, with the law's relative error."""
    mean = float((posterior * logarithms).sum())
    variance = float((posterior * (logarithms - mean) ** 2).sum())
    return Estimate(math.exp(mean), math.exp(mean) * math.sqrt(variance + law_error**2))
