"""The networks of a run's states have the weights that training put there, bit for bit."""

import numpy as np
import pytest
import small_text
from small_runs import go_on, new_run, refused
from small_text import new_text_run

from minidiff.formats.run_networks import load_run_pipeline, load_run_unet, read_unet
from minidiff.formats.run_state import WrongKind, best_file, kept_states, read_state, state_file, step_file
from minidiff.training.checkpoints import read_losses

CHOICES = ["raw", "best", 2, 4]


@pytest.fixture(scope="module")
def unet_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unet"
    run = new_run(folder, steps=6)
    go_on(run, checkpoint_every=2, keep=3)
    return run


def expected(run, choice):
    """The flat weights of a choice."""
    losses = read_losses(run.folder)
    step = min(losses, key=lambda step: losses[step]) if choice == "best" else choice
    path = state_file(run.folder) if choice == "raw" else step_file(run.folder, step)
    return read_state(path).buffers["p" if choice == "raw" else "ema"].read()


def flat(parameters):
    return np.concatenate([p.numpy().ravel() for p in parameters])


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_unet(unet_run, choice, backend):
    unet = load_run_unet(unet_run.folder, choice, backend)
    assert unet.config == unet_run.unet.config and {p.backend.name for p in unet.parameters()} == {backend}
    np.testing.assert_array_equal(flat(unet.parameters()), expected(unet_run, choice))


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("latent, frozen", [(False, False), (True, True)])
def test_a_pipeline(tmp_path, choice, latent, frozen):
    run = new_text_run(tmp_path, steps=6, latent=latent, frozen=frozen)
    go_on(run, checkpoint_every=2, keep=3, dataset=small_text.bars())
    pipeline = load_run_pipeline(tmp_path, choice, "numpy")
    trained = [pipeline.unet] if frozen else [pipeline.unet, pipeline.text_encoder]
    np.testing.assert_array_equal(flat(p for part in trained for p in part.parameters()), expected(run, choice))
    for name in ("text_encoder", "vae") if frozen else ():
        got, own = (getattr(parts, name).state_dict() for parts in (pipeline, run.pipeline))
        assert got.keys() == own.keys()
        for key, a in got.items():
            np.testing.assert_array_equal(a, own[key])
    assert pipeline.sampler == run.pipeline.sampler and pipeline.tokenizer.vocab == run.pipeline.tokenizer.vocab


def test_refusals(unet_run, tmp_path):
    refused(load_run_unet, tmp_path, "raw", match="holds no run")
    refused(load_run_unet, unet_run.folder, 3, match="keeps no checkpoint of step 3; choose one that is there: 2, 4, 6")
    with pytest.raises(WrongKind, match="is a run of a U-Net, not of a text U-Net; give another folder"):
        load_run_pipeline(unet_run.folder, "raw")


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path, capsys):
    run = new_run(tmp_path, steps=4)
    go_on(run, checkpoint_every=2, keep=2)
    step_2 = read_unet(read_state(kept_states(tmp_path)[2]), "p", "numpy")
    for path in (state_file(tmp_path), step_file(tmp_path, 4)):
        path.unlink()
        path.write_bytes(b"damaged")
    best_file(tmp_path).unlink()
    unet = load_run_unet(tmp_path, "raw", "numpy")
    assert "Going back to step 2, state-000002.safetensors." in capsys.readouterr().out.replace("\n", "")
    np.testing.assert_array_equal(flat(unet.parameters()), flat(step_2.parameters()))
