"""Sampling of points, where the model is exact: the data are N(0, STD^2)."""

import numpy as np
import pytest

from minidiff.data.dataset import from_arrays
from minidiff.diffusion.continuous import EDM, Flow
from minidiff.diffusion.forward import signal_and_noise, target
from minidiff.diffusion.reverse import sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import cosine_schedule
from minidiff.sampling.points import PointSampler
from minidiff.sampling.points_figure import points_figure

STD, STEPS = 0.4, 20
SCHEDULES = {"edm": EDM(), "flow": Flow()} | {
    kind: cosine_schedule(100, kind) for kind in ("epsilon", "sample", "v_prediction")
}


def exact(schedule, std=STD):
    """The model of N(0, std^2), or with labels of N(0, (std (1 + label))^2): posterior means of x0 and eps."""

    def model(x_t, t, cond=0):
        signal, noise = signal_and_noise(schedule, t, x_t)
        s = np.float32(std) * np.reshape(1 + cond, (-1, 1, 1, 1)).astype(np.float32)
        variance = signal**2 * s**2 + noise**2
        return target(schedule, signal * s**2 * x_t / variance, t, noise * x_t / variance)

    return model


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_score_of_a_gaussian(kind):
    """-x / (alpha_bar STD^2 + 1 - alpha_bar)."""
    net = PointSampler(exact(SCHEDULES[kind]), SCHEDULES[kind], None, steps=STEPS)
    x = np.linspace(-2, 2, 9, dtype=np.float32).reshape(-1, 1, 1, 1)
    assert net.noise.shape == (STEPS,) and (np.diff(net.noise) < 0).all()
    for step in (1, STEPS // 2, STEPS - 4):
        variance = (1 - net.noise[step] ** 2) * STD**2 + net.noise[step] ** 2
        np.testing.assert_allclose(net.score(x, step), -x / variance, rtol=1e-3, atol=1e-4)


def test_the_score_of_a_class():
    """The class that is named, or else the null class, here 2."""
    net = PointSampler(exact(SCHEDULES["v_prediction"]), SCHEDULES["v_prediction"], 2, steps=STEPS)
    x = np.ones((1, 1, 1, 1), np.float32)
    for label, std in ((0, STD), (1, 2 * STD), (None, 3 * STD)):
        variance = (1 - net.noise[10] ** 2) * std**2 + net.noise[10] ** 2
        assert net.score(x, 10, label).item() == pytest.approx(-1 / variance, rel=1e-4)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun"])
def test_trajectories_are_those_of_sample(name):
    schedule, shape, ticks = SCHEDULES["v_prediction"], (6, 1, 1, 2), []
    net = PointSampler(exact(schedule), schedule, None, Sampler(name, clip=None), STEPS)
    states = net.trajectories(shape, np.random.default_rng(3), None, lambda: ticks.append(1))
    want = [x_t for _, x_t, _ in sample(net.model, schedule, shape, np.random.default_rng(3), STEPS, net.sampler)]
    assert states.shape == (STEPS + 1, *shape) and len(ticks) == STEPS
    np.testing.assert_array_equal(states[1:], want)


@pytest.mark.parametrize("D, size", [(1, (1800, 570)), (2, (1500, 1020))])
def test_the_figure(D, size):
    """It shows data, samples, labels and score: each changes it; the same gives the same."""
    schedule, rng = SCHEDULES["v_prediction"], np.random.default_rng(0)
    points = rng.standard_normal((100, 1, 1, D), np.float32) * np.float32(STD)
    data = from_arrays("data", points, np.arange(100) % 2, ("a", "b"))
    other = from_arrays("other", -points, data.labels, data.classes)
    net, wide = (PointSampler(exact(schedule, std), schedule, 2, steps=STEPS) for std in (STD, 2 * STD))
    labels = np.arange(50) // 25
    states, others = (net.trajectories((50, 1, 1, D), np.random.default_rng(seed), labels) for seed in (1, 2))
    figures = [
        points_figure(*given)
        for given in (
            (net, data, states, labels),
            (net, data, states, labels),
            (net, other, states, labels),
            (net, data, others, labels),
            (wide, data, states, labels),
            (net, data, states, 0 * labels),
        )
    ]
    assert {figure.size for figure in figures} == {size}
    first, *rest = (np.asarray(figure) for figure in figures)
    assert [bool((first != figure).any()) for figure in rest] == [False, True, True, True, True]
