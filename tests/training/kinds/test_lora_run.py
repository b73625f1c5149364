"""minidiff tune: runs of a LoRA, from the first step to an image, and what they are started with."""

import dataclasses
import shutil

import numpy as np
import pytest
from small_runs import contents, go_on, refused, reopen, tree
from small_text import bars, new_text_run

from minidiff.formats.lora_files import LORA_WEIGHTS, load_lora
from minidiff.sampling.loras import merged_loras
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import text_to_image, with_prompts
from minidiff.training import state
from minidiff.training.config import TrainConfig
from minidiff.training.kinds import frozen_pipeline_run
from minidiff.training.kinds.lora_run import LoRARun
from minidiff.training.loop import validation_loss


@pytest.fixture(params=[False, True], ids=["pixels", "latents"])
def base(request, tmp_path):
    """The folder of a text run, which is a pipeline."""
    return new_text_run(tmp_path / "base", latent=request.param).folder


def new_lora_run(folder, base, backend="numpy", **changes):
    settings = dict(steps=8, batch_size=4, warmup=3, seed=5, flip=False, rank=2, backend=backend)
    pipeline = with_prompts(open_pipeline(base, backend, kind="text"))
    return state.new_run(LoRARun, folder, TrainConfig("bars", **settings | changes), pipeline)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, base, backend):
    before = tree(base)
    for name, stop_at in (("whole", 0), ("run", 5)):
        go_on(new_lora_run(tmp_path / name, base, backend, accumulate=2), stop_at=stop_at, dataset=bars())
    again = reopen(tmp_path / "run")
    assert isinstance(again, LoRARun) and again.step == 5
    go_on(again, dataset=bars())
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert tree(base) == before


def test_it_learns_and_its_pipeline_does_not(tmp_path, base):
    """By a twentieth of the loss: all but the attention of the pipeline is random, and frozen."""
    run = new_lora_run(tmp_path / "run", base, steps=60, lr=0.02)
    networks = (run.pipeline.unet, run.pipeline.text_encoder)
    trained = {id(p) for _, p in run.named_parameters()}
    own = [p for net in networks for p in net.parameters() if id(p) not in trained]
    before, loss = [p.data.tobytes() for p in own], validation_loss(run, bars())
    go_on(run, checkpoint_every=60, dataset=bars())
    assert [p.data.tobytes() for p in own] == before
    assert validation_loss(run, bars()) < 0.95 * loss


def test_its_file_gives_the_image_of_the_run(tmp_path, base):
    """Merged into the pipeline, the averaged updates give what the layers in training give."""
    run = new_lora_run(tmp_path / "run", base, lr=0.02)
    go_on(run, dataset=bars())
    arguments = dict(guidance=2.0, steps=3)
    with run.optimizer.averaged():
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
