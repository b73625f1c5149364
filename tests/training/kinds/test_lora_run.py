"""minidiff tune: runs of a LoRA, from the first step to an image, and what they are started with."""

import dataclasses
import shutil

import numpy as np
import pytest
from small_runs import contents, go_on, refused, reopen, tree
from small_text import bars, new_text_run

from minidiff.data.imaging import to_float
from minidiff.diffusion.forward import q_sample, target
from minidiff.formats.lora_files import LORA_WEIGHTS, load_lora
from minidiff.models.vae import Pixels
from minidiff.sampling.adapted import merged_loras
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import encode, text_to_image, with_prompts
from minidiff.training import state
from minidiff.training.config import TrainConfig, config_from_dict
from minidiff.training.kinds import frozen_pipeline_run
from minidiff.training.kinds.lora_run import LoRARun
from minidiff.training.loop import validation_loss

OWN_PRIOR = dict(projections="text", prior_weight=4.0, own_prior=True)


@pytest.fixture(params=[False, True], ids=["pixels", "latents"])
def base(request, tmp_path):
    """The folder of a text run, which is a pipeline."""
    return new_text_run(tmp_path / "base", latent=request.param).folder


def new_lora_run(folder, base, backend="numpy", **changes):
    settings = dict(steps=8, batch_size=4, warmup=3, seed=5, flip=False, rank=2, backend=backend)
    pipeline = with_prompts(open_pipeline(base, backend, kind="text"))
    return state.new_run(LoRARun, folder, TrainConfig("bars", **settings | changes), pipeline)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("changes", [{}, OWN_PRIOR], ids=["plain", "distilled"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, base, backend, changes):
    before = tree(base)
    for name, stop_at in (("whole", 0), ("run", 5)):
        go_on(new_lora_run(tmp_path / name, base, backend, accumulate=2, **changes), stop_at=stop_at, dataset=bars())
    again = reopen(tmp_path / "run")
    assert isinstance(again, LoRARun) and again.step == 5
    go_on(again, dataset=bars())
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert tree(base) == before


def test_settings_of_older_states():
    """Runs from before these settings update all projections, without prior preservation."""
    stored = dataclasses.asdict(TrainConfig("bars", rank=2))
    for name in ("projections", "prior_weight", "own_prior"):
        del stored[name]
    config = config_from_dict(stored)
    assert (config.projections, config.prior_weight, config.own_prior) == ("attention", None, False)
    assert config_from_dict({**stored, "distill": True}).own_prior  # as it was called for a while
    refused(lambda: dataclasses.replace(config, projections="all"), match="projections = 'all': choose attention or")


def test_images_with_captions_and_with_random_words(tmp_path, base):
    run = new_lora_run(tmp_path / "run", base, **OWN_PRIOR)
    (images, _), (x0, ids) = new_lora_run(tmp_path / "plain", base).batches(bars())(2), run.batches(bars())(2)
    np.testing.assert_array_equal(x0, np.concatenate([images, images]))
    known = {row.tobytes() for row in run.pipeline.tokenizer(list(bars().captions))}
    assert {row.tobytes() for row in ids[:4]} <= known and not {row.tobytes() for row in ids[4:]} & known
    np.testing.assert_array_equal(ids, run.batches(bars())(2)[1])


def test_the_target_is_the_prediction_of_the_model_as_it_was(tmp_path, base):
    """Of the second half of a batch, at the same x_t; the first half stays."""
    run, rng = new_lora_run(tmp_path / "run", base, **OWN_PRIOR), np.random.default_rng(0)
    schedule, side = run.pipeline.schedule, run.pipeline.unet.config.sample_size
    x0, eps = rng.standard_normal((2, 4, side, side, 3), np.float32)
    t, ids = np.array([1, 2, 10, 25]), run.pipeline.tokenizer(["red bar", "green", "bar", ""])
    x_t = q_sample(schedule, x0, t, eps)
    before = run.model(x_t, t, ids).numpy()
    for layer in run.layers.values():
        layer.B.data[...] = rng.standard_normal(layer.B.shape)
    after = run.model(x_t, t, ids).numpy()
    assert np.abs(after - before).max() > 0.1
    x0_hat, eps_hat = run.teacher(x0, t, eps, ids)
    np.testing.assert_array_equal([x0_hat[:2], eps_hat[:2]], [x0[:2], eps[:2]])
    np.testing.assert_allclose(q_sample(schedule, x0_hat, t, eps_hat), x_t, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(target(schedule, x0_hat, t, eps_hat)[2:], before[2:], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(run.model(x_t, t, ids).numpy(), after)


def test_it_forgets_less(tmp_path, base):
    """Known words' predictions change by at most a tenth of what they change without prior preservation."""
    changes = []
    for name, settings in (("keeps", OWN_PRIOR), ("forgets", {})):
        run, rng = new_lora_run(tmp_path / name, base, steps=60, lr=0.02, **settings), np.random.default_rng(0)
        x0 = encode(run.pipeline, to_float(bars().take(np.arange(8))), rng)
        t, eps = np.arange(8) * 3, rng.standard_normal(x0.shape, np.float32)
        x_t, ids = q_sample(run.pipeline.schedule, x0, t, eps), run.pipeline.tokenizer(["", "red", "red red"] * 3)[:8]
        before = run.model(x_t, t, ids).numpy()
        go_on(run, checkpoint_every=60, dataset=bars())
        changes.append(np.square(run.model(x_t, t, ids).numpy() - before).mean())
    assert changes[0] <= changes[1] / 10


def test_it_learns_and_its_pipeline_does_not(tmp_path, base):
    """By a quarter of the loss on pixels; by a twentieth on the latents of a random autoencoder, which are near noise.

    All but the attention of the pipeline is random, and frozen.
    """
    run = new_lora_run(tmp_path / "run", base, steps=60, lr=0.02)
    networks = (run.pipeline.unet, run.pipeline.text_encoder)
    trained = {id(p) for _, p in run.named_parameters()}
    own = [p for net in networks for p in net.parameters() if id(p) not in trained]
    before, loss = [p.data.tobytes() for p in own], validation_loss(run, bars())
    go_on(run, checkpoint_every=60, dataset=bars())
    assert [p.data.tobytes() for p in own] == before
    bound = 0.75 if isinstance(run.pipeline.vae, Pixels) else 0.95
    assert validation_loss(run, bars()) < bound * loss


def test_its_file_gives_the_image_of_the_run(tmp_path, base):
    """Merged into the pipeline, the averaged updates, rounded to float16, give what the layers in training give."""
    run = new_lora_run(tmp_path / "run", base, lr=0.02)
    go_on(run, dataset=bars())
    arguments = dict(guidance=2.0, steps=3)
    with run.optimizer.averaged():
        for _, p in run.named_parameters():
            p.data[...] = p.data.astype(np.float16)
        want = text_to_image(run.pipeline, ["red bar"], rng=np.random.default_rng(0), **arguments)
    pipeline = with_prompts(open_pipeline(base, "numpy"))
    without = text_to_image(pipeline, ["red bar"], rng=np.random.default_rng(0), **arguments)
    with merged_loras(pipeline, [(load_lora(tmp_path / "run", pipeline), 1.0)]):
        got = text_to_image(pipeline, ["red bar"], rng=np.random.default_rng(0), **arguments)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
    assert np.abs(got - without).max() > 1e-2


def test_a_sheet_of_its_captions(tmp_path, base, monkeypatch):
    monkeypatch.setattr(frozen_pipeline_run, "SHEET_PROMPTS", 2)
    run = new_lora_run(tmp_path / "run", base)
    image = run.sheet(bars(), bars())
    assert image.width > 2 * 8 and np.asarray(image).std() > 0


def test_another_pipeline_in_its_place_is_refused(tmp_path, base):
    new_lora_run(tmp_path / "run", base)
    shutil.move(base, tmp_path / "away")
    refused(state.open_run, tmp_path / "run", match="its pipeline cannot be opened: .*base: no such folder")
    run = new_text_run(base)
    run.pipeline.unet.conv_out.bias.data[...] = 1
    state.export(run, raw=True)
    refused(state.open_run, tmp_path / "run", match="base: is not the pipeline that .*run was started with")
    shutil.rmtree(base)
    shutil.move(tmp_path / "away", base)
    assert state.open_run(tmp_path / "run").step == 0


def test_a_folder_that_holds_a_lora_is_left_alone(tmp_path, base):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LORA_WEIGHTS).write_bytes(b"")
    refused(new_lora_run, tmp_path / "run", base, match="holds a pytorch_lora_weights.safetensors that is not of a run")


def test_the_rank_is_checked(tmp_path):
    refused(lambda: dataclasses.replace(TrainConfig("bars"), rank=0), match="rank = 0: give a whole number from 1")
