"""Runs of consistency tuning: their start, stages, resuming bit for bit, what the folder says."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from small_runs import contents, go_on, idx_set, network, new_points_run, new_run, refused, reopen, tree, unet_of
from small_text import new_text_run

import minidiff as md
from minidiff.diffusion.continuous import EDM, Flow
from minidiff.diffusion.noise_levels import consistency_times, noise_levels
from minidiff.diffusion.sampler import Sampler
from minidiff.errors import MinidiffError
from minidiff.files import read_json, write_json
from minidiff.formats.networks import load_sampler, save_pipeline, save_unet
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.settings import sampling_settings
from minidiff.training import state
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.consistency import stage_of
from minidiff.training.kinds.text_run import TextRun
from minidiff.training.kinds.vae_run import VAERun, default_vae
from minidiff.training.start_tuning import STAGES, start_distillation

GIVEN = dict(steps=8, batch_size=4, backend="numpy", warmup=2)


@pytest.fixture
def base(tmp_path):
    """A run whose average differs from its last weights, and its data."""
    idx_set(tmp_path / "data")
    run = new_run(tmp_path / "base", steps=3)
    go_on(run)
    return run.folder


def distilled(tmp_path, base, name="few", **given):
    return start_distillation(base, tmp_path / name, str(tmp_path / "data"), GIVEN | given, 1)


def test_it_starts_from_the_averaged_weights(tmp_path, base):
    run, _ = distilled(tmp_path, base)
    np.testing.assert_array_equal(run.optimizer.p, state.open_run(base).optimizer.ema)
    np.testing.assert_array_equal(run.optimizer.ema, run.optimizer.p)
    assert (run.step, run.config.consistency) == (0, STAGES)


def test_it_learns_and_the_base_stays(tmp_path, base):
    before = tree(base)
    run, dataset = distilled(tmp_path, base)
    start = run.optimizer.p.copy()
    go_on(run, dataset=dataset)
    assert (run.optimizer.p != start).mean() > 0.9 and tree(base) == before


def test_the_stages_have_equal_parts_of_the_steps():
    config = TrainConfig("noise", steps=12, consistency=4)
    assert [stage_of(step, config) for step in range(1, 13)] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert stage_of(1, replace(config, steps=1)) == 1
    with pytest.raises(MinidiffError, match="consistency = 0: give a whole number from 1 to 20"):
        TrainConfig("noise", consistency=0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path, base, accumulate):
    whole, dataset = distilled(tmp_path, base, "whole", accumulate=accumulate)
    go_on(whole, dataset=dataset)
    stopped, dataset = distilled(tmp_path, base, "stopped", accumulate=accumulate)
    go_on(stopped, stop_at=5, dataset=dataset)
    go_on(reopen(stopped.folder), dataset=dataset)
    assert contents(whole.folder) == contents(stopped.folder)


@pytest.mark.parametrize("latent", [False, True])
def test_a_text_run_resumes_too_with_a_frozen_encoder(tmp_path, latent):
    folder = tmp_path / "data"
    folder.mkdir()
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (8, 8), colour).save(folder / f"{i}.png")
    (folder / "captions.csv").write_text("file_name,text\n0.png,red\n1.png,green\n2.png,blue bar\n")
    base = new_text_run(tmp_path / "base", latent=latent).folder
    whole, dataset = distilled(tmp_path, base, "whole", batch_size=2)
    assert isinstance(whole, TextRun)
    encoder = [p.numpy().copy() for p in whole.pipeline.text_encoder.parameters()]
    go_on(whole, dataset=dataset)
    for before, p in zip(encoder, whole.pipeline.text_encoder.parameters(), strict=True):
        np.testing.assert_array_equal(before, p.numpy())
    stopped, dataset = distilled(tmp_path, base, "stopped", batch_size=2)
    go_on(stopped, stop_at=5, dataset=dataset)
    go_on(reopen(stopped.folder), dataset=dataset)
    assert contents(whole.folder) == contents(stopped.folder)
    few = open_pipeline(whole.folder, "numpy", kind="text")
    assert few.sampler == Sampler("consistency", "log_sigma", offset=1, clip=None if latent else 1.0)
    assert sampling_settings(few)[1] == 2


@pytest.mark.parametrize(
    ("schedule", "class_name", "clip"),
    [
        (md.linear_schedule(60), "LCMScheduler", 1.0),
        (md.cosine_schedule(60, "v_prediction"), "LCMScheduler", 1.0),
        (EDM(), "EDMConsistencyScheduler", None),
        (Flow(), "FlowMatchLCMScheduler", None),
    ],
)
def test_the_folder_says_that_it_is_a_consistency_model(tmp_path, base, schedule, class_name, clip):
    """With every prediction type a step can be taken, and the folder is opened with its sampler and two steps."""
    save_unet(unet_of(network()), tmp_path / "net" / "unet")
    save_pipeline(tmp_path / "net", schedule)
    run, dataset = distilled(tmp_path, tmp_path / "net", steps=2)
    go_on(run, dataset=dataset)
    assert np.isfinite(run.optimizer.p).all()
    config = read_json(run.folder / "scheduler" / "scheduler_config.json", dict)
    assert config["_class_name"] == class_name
    few, steps = sampling_settings(open_pipeline(run.folder, "numpy"))
    assert (few.sampler, steps) == (Sampler("consistency", "log_sigma", clip=clip), 2)
    assert few.schedule.prediction_type == schedule.prediction_type
    assert load_sampler(run.folder, "ddim").name == "ddim"
    levels = noise_levels(few.schedule, 2, load_sampler(run.folder, "consistency"))
    np.testing.assert_array_equal(levels.ts, consistency_times(few.schedule, 2))
    with pytest.raises(MinidiffError, match="--spacing leading: consistency has timesteps of its own"):
        sampling_settings(few, spacing="leading")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"timestep_scaling": 5.0}, "timestep_scaling = 5.0 is not supported: use 10.0"),
        ({"original_inference_steps": 40}, "original_inference_steps = 40 is not supported: use 50"),
    ],
)
def test_other_settings_of_a_scheduler_are_refused(tmp_path, changes, match):
    save_pipeline(tmp_path, md.cosine_schedule(60), Sampler("consistency"))
    path = tmp_path / "scheduler" / "scheduler_config.json"
    write_json(path, read_json(path, dict) | changes)
    with pytest.raises(MinidiffError, match=match):
        load_sampler(tmp_path)


def vae_run(tmp_path):
    config = TrainConfig("noise", steps=3, batch_size=4, backend="numpy")
    return state.new_run(VAERun, tmp_path / "other", config, default_vae((4, 4, 1), width=8))


def learned_variance(tmp_path):
    return new_run(tmp_path / "other", out_channels=2)


def predicts_x0(tmp_path):
    save_unet(unet_of(network()), tmp_path / "other" / "unet")
    save_pipeline(tmp_path / "other", md.cosine_schedule(60, "sample"))
    return replace(new_run(tmp_path / "unused"), folder=tmp_path / "other")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (vae_run, "an autoencoder, which does not sample; give a run of minidiff train on images"),
        (lambda tmp_path: new_points_run(tmp_path / "other"), "an MLP on points"),
        (predicts_x0, "predicts x0, by which tuning drifts; train with another --objective"),
        (learned_variance, "predicts its variance too, and consistency models have none; give another run"),
    ],
    ids=["autoencoder", "points", "x0", "learned variance"],
)
def test_other_runs_are_refused_and_nothing_is_written(tmp_path, make, match):
    idx_set(tmp_path / "data")
    other = make(tmp_path).folder
    before = tree(tmp_path)
    refused(distilled, tmp_path, other, match=match)
    assert tree(tmp_path) == before


def test_a_consistency_model_is_refused(tmp_path, base):
    distilled(tmp_path, base)
    refused(distilled, tmp_path, tmp_path / "few", "again", match="few: is a consistency model already; give the run")


def test_other_images_are_refused(tmp_path, base):
    idx_set(tmp_path / "wide", width=8)
    refused(start_distillation, base, tmp_path / "few", str(tmp_path / "wide"), GIVEN, 1, match=r"shape \(4, 8, 1\)")
    assert not (tmp_path / "few").exists()


def test_data_of_the_run_is_the_default_and_a_folder_needs_it(tmp_path, base):
    save_unet(unet_of(network()), tmp_path / "net" / "unet")
    save_pipeline(tmp_path / "net", md.linear_schedule(60))
    refused(
        start_distillation, tmp_path / "net", tmp_path / "few", None, GIVEN, 1, match="is no run, so DATA is missing"
    )
