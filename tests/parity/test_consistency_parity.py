"""Folders of consistency models in diffusers: equal samples from the same noise, or no class of that name."""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # before diffusers is imported: what is not in the folder is an error

import diffusers
import numpy as np
import pytest
import torch
from one_thread import one_thread  # noqa: F401  for all tests of this module
from small_runs import go_on, idx_set, network, unet_of

import minidiff as md
from minidiff.diffusion.continuous import EDM, Flow
from minidiff.diffusion.model import as_model
from minidiff.diffusion.reverse import last_x_t, sample
from minidiff.files import read_json
from minidiff.formats.networks import save_pipeline, save_unet
from minidiff.sampling.opening import open_pipeline
from minidiff.training.start_tuning import start_distillation

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers on torch
GIVEN = dict(steps=2, batch_size=4, backend="numpy")
SHAPE = (3, 4, 4, 1)
R = 25**0.25  # the ratio of the noise levels of four steps
TIMESTEPS = {1: [973], 2: [973, 872], 4: [973, 942, 872, 729]}  # of consistency on the cosine schedule


@pytest.fixture
def distilled(tmp_path):
    """distilled(schedule): the folder of a small run of consistency tuning, after two steps."""
    idx_set(tmp_path / "data")

    def distilled(schedule):
        save_unet(unet_of(network()), tmp_path / "net" / "unet")
        save_pipeline(tmp_path / "net", schedule)
        run, dataset = start_distillation(tmp_path / "net", tmp_path / "few", str(tmp_path / "data"), GIVEN, 1)
        go_on(run, dataset=dataset)
        return run.folder

    return distilled


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize(
    "schedule", [md.linear_schedule(), md.cosine_schedule(prediction_type="v_prediction")], ids=["epsilon", "v"]
)
def test_ddpm_pipeline_samples_the_folder(distilled, schedule, steps):
    folder = distilled(schedule)
    theirs = diffusers.DDPMPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    assert type(theirs.scheduler).__name__ == "LCMScheduler"
    images = theirs(batch_size=3, generator=torch.manual_seed(0), num_inference_steps=steps, output_type="np").images
    few = open_pipeline(folder, "numpy", as_diffusers=True)
    trajectory = sample(few.unet, few.schedule, SHAPE, md.torch_generator(0), steps, few.sampler)
    ours = (last_x_t(trajectory) / 2 + 0.5).clip(0, 1)
    np.testing.assert_allclose(ours, images, rtol=0, atol=2e-5)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_lcm_scheduler_with_the_timesteps_of_the_sampler(distilled, steps, monkeypatch):
    """A pipeline has no argument for timesteps, but the scheduler takes them."""
    folder = distilled(md.cosine_schedule(prediction_type="v_prediction"))
    few, noises = open_pipeline(folder, "numpy"), np.random.default_rng(3).standard_normal((5, *SHAPE), np.float32)
    ours = last_x_t(sample(few.unet, few.schedule, SHAPE, Given(noises), steps, few.sampler))
    theirs = looped(folder, diffusers.LCMScheduler, noises, monkeypatch, timesteps=TIMESTEPS[steps])
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sigmas", [[25 / 26], [25 / 26, 5 / 6], [25 / 26, R**3 / (1 + R**3), 5 / 6, R / (1 + R)]])
def test_flow_with_the_times_of_the_sampler(distilled, sigmas, monkeypatch):
    """FlowMatchLCMScheduler's own times begin at 1 and end at 0.001; ours are given to it, and t eps to begin with."""
    folder = distilled(Flow())
    few, noises = open_pipeline(folder, "numpy"), np.random.default_rng(3).standard_normal((5, *SHAPE), np.float32)
    model = as_model(few.unet, few.schedule)
    ours = last_x_t(sample(model, few.schedule, SHAPE, Given(noises), len(sigmas), few.sampler))

    theirs = looped(folder, diffusers.FlowMatchLCMScheduler, noises, monkeypatch, start=sigmas[0], sigmas=sigmas)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def looped(folder, scheduler_class, noises, monkeypatch, start=1.0, **times):
    """Samples (N, H, W, C) of a loop over diffusers' scheduler and network, from `start` times the first noise."""
    scheduler = scheduler_class.from_pretrained(folder / "scheduler")
    net = diffusers.UNet2DModel.from_pretrained(folder / "unet")
    given = Given(noises)
    module = sys.modules[scheduler_class.__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: channels_first(given.standard_normal()))
    scheduler.set_timesteps(**times)
    x = start * channels_first(given.standard_normal())
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x).prev_sample
    return np.moveaxis(x.numpy(), 1, -1)


def test_diffusers_has_no_class_for_edm(distilled):
    """And so the folder has no model_index.json, which would name it."""
    folder = distilled(EDM())
    config = read_json(folder / "scheduler" / "scheduler_config.json", dict)
    assert not hasattr(diffusers, config["_class_name"])
    assert not (folder / "model_index.json").exists()


class Given:
    """Noise (N, H, W, C) in the order in which it is given."""

    def __init__(self, noises):
        self.noises = iter(noises)

    def standard_normal(self, shape=SHAPE, dtype=np.float32):
        return next(self.noises)


def channels_first(x):
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())
