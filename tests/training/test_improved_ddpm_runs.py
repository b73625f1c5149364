"""Runs with a learned variance and with importance sampling of t: resumed bit for bit, and opened by diffusers."""

import diffusers
import exact_checks as checks
import numpy as np
import pytest
import torch
from small_runs import contents, go_on, network, pictures, read_safetensors, refused, reopen

from minidiff.data.imaging import to_float
from minidiff.diffusion.loss import HISTORY
from minidiff.diffusion.model import as_model
from minidiff.diffusion.reverse import last_x_t, sample
from minidiff.diffusion.schedule import linear_schedule
from minidiff.engine.tensor import no_grad
from minidiff.engine.torch_generator import torch_generator
from minidiff.evaluation.samples import sampled
from minidiff.formats.weights import write_safetensors
from minidiff.sampling.opening import open_pipeline
from minidiff.training import state
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.unet_run import UNetRun
from minidiff.training.step import make_optimizer, train, train_step

STEPS, T = 24, 3  # 96 losses, of three timesteps: each has its ten after some ten steps


def new_run(folder, backend="numpy", steps=STEPS, **options):
    config = TrainConfig("noise", steps=steps, batch_size=4, warmup=3, seed=5, backend=backend, **options)
    channels = 2 if config.learned_variance else 1
    return state.new_run(UNetRun, folder, config, network(out_channels=channels), linear_schedule(T, 0.1, 0.6))


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("learned_variance", [False, True])
def test_stopped_and_resumed(tmp_path, backend, accumulate, learned_variance):
    """With stops before and after the history is full."""
    options = dict(importance_sampling=True, learned_variance=learned_variance, accumulate=accumulate)
    go_on(new_run(tmp_path / "whole", backend, **options))
    run = new_run(tmp_path / "run", backend, **options)
    for stop in (2, 7, 17):
        go_on(run, stop_at=stop)
        run = reopen(tmp_path / "run")
    assert not np.isnan(run.losses).any()
    go_on(run)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_the_state_holds_the_history(tmp_path):
    run = new_run(tmp_path / "run", steps=3, importance_sampling=True)
    go_on(run)
    path = state.state_file(tmp_path / "run")
    arrays, metadata = read_safetensors(path)
    np.testing.assert_array_equal(arrays["losses"], run.losses)
    assert arrays["losses"].shape == (T, HISTORY) and np.isfinite(arrays["losses"]).sum() == 12
    for changed in ({"losses": np.zeros((T, 3), np.float32)}, {}):
        write_safetensors(path, {name: a for name, a in arrays.items() if name != "losses"} | changed, metadata)
        refused(lambda: state.build_run(state.read_state(path)), match="losses does not fit the network")


def test_without_the_options_a_state_has_no_history(tmp_path):
    run = new_run(tmp_path / "run", steps=3)
    go_on(run)
    assert run.losses is None and "losses" not in read_safetensors(state.state_file(tmp_path / "run"))[0]


def test_the_history_of_a_step_is_the_losses_of_its_images(tmp_path):
    """Before it is full, a step is one with uniform t, whose loss is the mean over its images."""
    run = new_run(tmp_path / "run", importance_sampling=True)
    x0 = to_float(pictures().take(np.arange(4)))
    rng = np.random.default_rng(3)
    t, eps = rng.integers(0, T, 4), rng.standard_normal(x0.shape, dtype=np.float32)
    with no_grad():
        each = checks.image_losses(run.model, run.schedule, x0, t, eps)
    stats = train_step(run.model, run.schedule, run.optimizer, x0, np.random.default_rng(3), history=run.losses)
    assert stats.loss == pytest.approx(each.mean(), rel=1e-6)
    for n, loss in zip(t, each, strict=True):
        assert loss in run.losses[n]
    assert np.isfinite(run.losses).sum() == 4


def test_train_samples_by_importance(tmp_path):
    """The loop over batches equals the steps of a run with the same options."""
    run = new_run(tmp_path / "run", importance_sampling=True)
    go_on(run)
    other = new_run(tmp_path / "other", importance_sampling=True)
    make_batch = other.batches(pictures())
    optimizer = make_optimizer(other.unet.named_parameters(), other.config)
    batches = (make_batch(step) for step in range(1, STEPS + 1))
    losses = [
        stats.loss
        for stats in train(as_model(other.unet, other.schedule), other.schedule, optimizer, batches, other.config)
    ]
    logged = [float(line.split(",")[1]) for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]]
    assert losses == logged


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers on torch
def test_diffusers_samples_the_same_images(tmp_path):
    """DDPMPipeline opens the run: three channels more, and its scheduler's variance is learned_range."""
    config = TrainConfig(
        "noise", steps=30, batch_size=4, warmup=3, lr=5e-3, seed=5, backend="numpy", learned_variance=True
    )
    unet = network(sample_size=8, in_channels=3, out_channels=6)
    run = state.new_run(UNetRun, tmp_path / "run", config, unet, linear_schedule(20, 0.01, 0.4))
    go_on(run)

    theirs = diffusers.DDPMPipeline.from_pretrained(tmp_path / "run")
    assert theirs.unet.config.out_channels == 6 and theirs.scheduler.config.variance_type == "learned_range"
    theirs.set_progress_bar_config(disable=True)
    images = theirs(2, torch.Generator().manual_seed(4), num_inference_steps=20, output_type="np").images

    pipeline = open_pipeline(tmp_path / "run", "numpy", as_diffusers=True)
    assert pipeline.learned_variance and pipeline.sampler.variance == "learned_range"
    model = as_model(pipeline.unet, pipeline.schedule)
    x_0 = last_x_t(sample(model, pipeline.schedule, (2, 8, 8, 3), torch_generator(4), 20, pipeline.sampler))
    np.testing.assert_allclose((x_0 / 2 + 0.5).clip(0, 1), images, rtol=1e-4, atol=1e-5)
    assert sampled(pipeline, 2, 20, 1.0, False, 0).bound.variance == "learned_range"
    ddim = open_pipeline(tmp_path / "run", "numpy", sampler="ddim")
    assert sampled(ddim, 2, 20, 1.0, False, 0).bound.variance == "learned_range"
    assert ddim.sampler.name == "ddim" and ddim.sampler.variance == "fixed_small"
