"""Recipes: what they say is what a run is, and what stands beside them wins."""

import dataclasses

import numpy as np
import pytest
from small_runs import idx_set, network, pictures

from minidiff.engine.optim import half_life
from minidiff.errors import MinidiffError
from minidiff.models.default_configs import default_config
from minidiff.models.unet import UNet
from minidiff.training import recipes, start, state
from minidiff.training.config import TrainConfig
from minidiff.training.recipes import RECIPES, SCHEDULE, find
from minidiff.training.resume import resume as resumed
from minidiff.training.step import make_optimizer

CIFAR10 = (32, 32, 3)


def parameters(name, classes=None):
    unet = UNet(RECIPES[name].network(CIFAR10, classes), None, "numpy")
    return sum(p.data.size for p in unet.parameters())


def test_ddpm_is_ddpms_own():
    """Ho et al. 2020, appendix B, and google/ddpm-cifar10-32's config.json."""
    recipe = RECIPES["ddpm"]
    config = TrainConfig("cifar10", **recipe.choices)
    assert parameters("ddpm") == 35_746_307
    assert (config.steps, config.batch_size, config.lr, config.warmup, config.ema) == (800_000, 128, 2e-4, 5000, 0.9999)
    assert config.rate(800_000) == config.rate(5000) == 2e-4 == 2 * config.rate(2500)
    large = recipe.network(CIFAR10, None)
    assert (large.dropout, large.norm_eps, large.downsample_padding, large.freq_shift) == (0.1, 1e-6, 0, 1)
    assert not large.flip_sin_to_cos and large.down_block_types.index("AttnDownBlock2D") == 1
    betas = recipe.schedule.betas
    assert (betas[0], betas[-1], len(betas), recipe.schedule.prediction_type) == (1e-4, 0.02, 1000, "epsilon")
    np.testing.assert_allclose(np.diff(betas), 0.0199 / 999, rtol=1e-9)
    unet = UNet(network(), np.random.default_rng(0), "numpy")
    optimizer = make_optimizer(unet.named_parameters(), config)
    assert (optimizer.betas, optimizer.weight_decay, optimizer.clip) == ((0.9, 0.999), 0.0, 1.0)


def test_the_small_ones():
    assert RECIPES["small-cpu"].network(CIFAR10, 11) == default_config(CIFAR10, num_class_embeds=11)
    assert 2.6e6 < parameters("small-cpu", 11) < 2.8e6 and 8.9e6 < parameters("small-gpu", 11) < 9.1e6
    for name in ("small-cpu", "small-gpu"):
        assert RECIPES[name].by_class and RECIPES[name].schedule is SCHEDULE
        config = TrainConfig("cifar10", **RECIPES[name].choices)
        assert config.rate(config.steps) < 0.001 * config.lr
    assert abs(half_life(1386) - RECIPES["small-cpu"].choices["ema"]) < 1e-6


@pytest.mark.parametrize("name", RECIPES)
def test_times_say_where_they_come_from(name):
    assert ("measured" if name == "small-cpu" else "extrapolated") in RECIPES[name].time


@pytest.mark.parametrize("name", ["small-gpu", "ddpm"])
def test_pictures_of_other_shapes(name):
    assert RECIPES[name].network((64, 32, 1), 3).sample_size == (64, 32)
    with pytest.raises(
        MinidiffError, match="downsamples three times, so H and W must be multiples of 8, not 28x36; choose small-cpu"
    ):
        RECIPES[name].network((36, 28, 1), None)


def test_a_recipe_that_is_none():
    with pytest.raises(MinidiffError, match="--recipe large: choose from small-cpu, small-gpu, ddpm"):
        find("large")
    assert find(None).network(CIFAR10, None) == default_config(CIFAR10)


# Runs of a recipe


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The folder of a small set; recipes have networks of one level."""
    for name in ("small-cpu", "ddpm"):
        one_level = dataclasses.replace(RECIPES[name], network=lambda shape, n: network(num_class_embeds=n))
        monkeypatch.setitem(recipes.RECIPES, name, one_level)
    return str(idx_set(tmp_path / "data"))


def started(folder, data, by_class=False, **given):
    return start.start_run(folder, data, {"backend": "numpy", **given}, by_class, 1)[0]


def resume(folder, data, **given):
    return resumed(folder, data, given, None)[0]


def test_options_win_over_the_recipe(tiny, tmp_path, caplog):
    caplog.set_level("INFO")
    run = started(tmp_path / "run", tiny, recipe="small-cpu", lr=0.01, steps=7)
    assert (run.config.lr, run.config.steps) == (0.01, 7)
    assert (run.config.batch_size, run.config.warmup, run.config.ema) == (64, 500, 0.9995)
    assert "Recipe small-cpu, with its settings unchanged: 79 minutes" in caplog.text
    assert len(run.config.classes) == 10 and run.unet.config.num_class_embeds == 11


def test_what_is_predicted_wins_too_and_the_betas_stay(tiny, tmp_path):
    run = started(tmp_path / "run", tiny, recipe="ddpm", objective="v_prediction")
    assert run.schedule.prediction_type == "v_prediction" and run.schedule.betas[-1] == 0.02
    assert not run.config.classes
    assert started(tmp_path / "flow", tiny, recipe="ddpm", objective="flow").schedule.prediction_type == "flow"


def test_by_class_only_where_there_are_classes(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(start, "open_dataset", lambda *_, **__: pictures())
    assert started(tmp_path / "run", tiny, recipe="small-cpu").config.classes == ()
    with pytest.raises(MinidiffError, match="has a single class; leave --by-class out"):
        started(tmp_path / "new", tiny, recipe="small-cpu", by_class=True)


def test_a_run_of_a_recipe_goes_on_with_it_or_without(tiny, tmp_path):
    started(tmp_path / "run", tiny, recipe="small-cpu", steps=7)
    for given in ({}, {"recipe": "small-cpu"}):
        assert resume(tmp_path / "run", tiny, **given).config.steps == 7  # not those of the recipe
    assert resume(tmp_path / "run", tiny, recipe="small-cpu", steps=9).config.steps == 9
    with pytest.raises(MinidiffError, match="was started with --batch-size 64, not 128"):
        resume(tmp_path / "run", tiny, recipe="ddpm")


def test_a_recipe_that_does_not_fit_names_itself(tmp_path):
    data = str(idx_set(tmp_path / "data"))
    with pytest.raises(
        MinidiffError,
        match="--recipe ddpm: its network downsamples three times, so H and W must be multiples of 8, not 4x4",
    ):
        started(tmp_path / "run", data, recipe="ddpm")
    assert not state.state_file(tmp_path / "run").exists()
