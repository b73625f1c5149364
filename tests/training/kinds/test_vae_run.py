"""minidiff train-vae: the run of an autoencoder, from its first step to a folder that diffusers opens."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from against_torch import nchw, nhwc
from diffusers import AutoencoderKL
from PIL import Image
from small_runs import contents, go_on, idx_set, new_run, pictures, refused, reopen, tree

from minidiff.data.dataset import subset
from minidiff.data.imaging import to_float
from minidiff.errors import MinidiffError
from minidiff.formats.run_networks import read_parts
from minidiff.formats.run_state import read_state, state_file
from minidiff.formats.stable_diffusion import load_vae
from minidiff.models.config import VAEConfig
from minidiff.models.vae import VAE
from minidiff.training import state
from minidiff.training.checkpoints import read_losses
from minidiff.training.config import TrainConfig
from minidiff.training.kinds import vae_run
from minidiff.training.kinds.unet_run import UNetRun
from minidiff.training.kinds.vae_run import VAERun, default_vae, psnr, reconstruct, vae_step
from minidiff.training.loop import validation_loss

STEPS = 8
NETWORK = VAEConfig(
    in_channels=1, out_channels=1, block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=1, norm_num_groups=4, sample_size=4,
)  # fmt: skip
QUICK = ("--backend", "numpy", "--threads", 1, "--batch-size", 3, "--steps", 3, "--size", 4)


def a_run(folder, backend="numpy", **changes):
    config = TrainConfig("noise", steps=STEPS, batch_size=4, warmup=3, seed=5, backend=backend, **changes)
    return state.new_run(VAERun, folder, config, NETWORK)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, backend, accumulate):
    go_on(a_run(tmp_path / "whole", backend, accumulate=accumulate))
    go_on(a_run(tmp_path / "run", backend, accumulate=accumulate), stop_at=5)
    again = reopen(tmp_path / "run")
    assert isinstance(again, VAERun) and again.step == 5
    go_on(again)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_parts_of_a_batch_give_the_same_gradient():
    """Up to rounding, which moves a weight by its sign times the rate at most: so the loss of the next step is held."""
    x = np.tanh(np.random.default_rng(0).standard_normal((4, 4, 4, 1))).astype(np.float32)
    losses = []
    for parts in (1, 4):
        vae = VAE(NETWORK, np.random.default_rng(0), "numpy")
        optimizer = vae_run.make_optimizer(vae.named_parameters(), TrainConfig("noise", lr=1e-3))
        losses.append([vae_step(vae, optimizer, x, np.random.default_rng(i), 1e-4, parts).loss for i in range(2)])
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_each_step_draws_latents_of_its_own(tmp_path):
    run = a_run(tmp_path)
    x = run.batches(pictures())(1)
    first, same, other = (
        vae_run.vae_loss(run.vae, x, np.random.default_rng(seed).standard_normal((4, 2, 2, 1), np.float32), 1e-4)
        for seed in (1, 1, 2)
    )
    assert float(first.numpy()) == float(same.numpy()) != float(other.numpy())


def test_diffusers_opens_it_and_gives_the_same_pictures(tmp_path):
    """The averaged weights; from the latents' means, which are its mode."""
    run = a_run(tmp_path)
    go_on(run)
    theirs = AutoencoderKL.from_pretrained(tmp_path / "vae").eval()
    x = to_float(pictures().take(np.arange(3)))
    with torch.no_grad():
        want = theirs(nchw(torch.tensor(x))).sample
    with run.optimizer.averaged():
        got = run.vae.decode(run.vae.encode(x).mean).numpy()
    np.testing.assert_allclose(got, nhwc(want).numpy(), rtol=1e-4, atol=1e-5)
    ours = load_vae(tmp_path / "vae", "numpy")
    np.testing.assert_array_equal(ours.decode(ours.encode(x).mean).numpy(), got)


def test_it_learns(tmp_path):
    """Four pictures of noise can be remembered: what is left falls well below their spread."""
    config = TrainConfig("noise", steps=150, batch_size=4, lr=5e-3, warmup=3, ema=0.9, flip=False, backend="numpy")
    few = subset(pictures(), np.arange(4))
    run = state.new_run(VAERun, tmp_path, config, NETWORK)
    go_on(run, 150, dataset=few)
    assert read_losses(tmp_path)[150] < 0.3 * to_float(few.take(np.arange(4))).var()


def test_the_probe_is_the_error_of_what_comes_back(tmp_path):
    run, held_out = a_run(tmp_path), pictures(5)
    go_on(run, validation=held_out)
    x = to_float(held_out.take(np.arange(5)))
    with run.optimizer.averaged():
        want = np.square(reconstruct(run.vae, x) - x).mean()
    assert read_losses(tmp_path)[STEPS] == validation_loss(run, held_out) == pytest.approx(want, rel=1e-5)
    assert validation_loss(run, pictures(3)) != validation_loss(run, held_out)


def test_psnr():
    """One number in 255 off everywhere is 20 log10(255) = 48.13 dB, as everybody has it for uint8."""
    assert psnr((2 / 255) ** 2) == pytest.approx(20 * math.log10(255)) and psnr(0) == math.inf
    assert psnr(4.0) == 0


def test_the_sheet_shows_pairs(tmp_path, monkeypatch):
    """The pictures themselves on every other place."""
    run = a_run(tmp_path)
    monkeypatch.setattr(vae_run, "SHEET_IMAGES", 4)
    shown = []
    monkeypatch.setattr(vae_run, "sheet", lambda images, columns: shown.append(images) or Image.new("RGB", (1, 1)))
    run.sheet(pictures(7), pictures(4))
    np.testing.assert_array_equal(shown[0][::2], pictures(4).take(np.arange(4)))
    assert (shown[0][1::2] != shown[0][::2]).any()


@pytest.mark.parametrize(
    "shape, latents", [((32, 32, 3), (8, 8, 12)), ((28, 28, 1), (7, 7, 4)), ((30, 32, 3), (15, 16, 3))]
)
def test_latents_are_a_quarter_of_the_pictures(shape, latents):
    vae = VAE(default_vae(shape), None, "numpy")
    assert vae.latent_shape((1, *shape)) == (1, *latents) and np.prod(latents) * 4 == np.prod(shape)
    assert vae.moments(np.zeros((1, *shape), np.float32)).shape == (1, *latents[:2], 2 * latents[2])


def test_pictures_that_cannot_be_halved():
    refused(default_vae, (5, 8, 3), match="8x5 images: the autoencoder needs an even height and width.*--size")


def test_an_autoencoder_of_another_width_and_depth():
    config = default_vae((32, 32, 3), width=16, depth=4)
    assert config.block_out_channels == (16, 32, 32, 32) and config.latent_channels == 48
    assert default_vae((32, 32, 3), 32, 3) == default_vae((32, 32, 3))
    refused(default_vae, (32, 32, 3), 20, match="width 20: give a multiple of 8")
    refused(default_vae, (28, 28, 1), 32, 4, match="depth 4: does not go with 28x28 pixels; give 2 to 3 levels")
    refused(default_vae, (28, 28, 1), 32, 1, match="depth 1: does not go with 28x28 pixels; give 2 to 3 levels")


# The command line


def test_from_nothing_to_a_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    idx_set(tmp_path / "data")
    idx_set(tmp_path / "data", 5, prefix="t10k")
    size = ("--width", 8, "--depth", 2)
    code, out, err = run("train-vae", "data", "--out", "vae", "--checkpoint-every", 2, *size, *QUICK)
    assert (code, err) == (0, "")
    assert "5 of the test split" in out and "Done: step 3." in out
    assert out.count("PSNR of the averaged weights on fixed images") == 2
    assert {"vae", "metrics.csv", "checkpoints.csv", "loss.png"} < tree(tmp_path / "vae").keys()
    with Image.open("vae/samples/step-000003.png") as image:
        assert image.width > image.height
    code, out, _ = run("train-vae", "data", "--out", "vae", "--resume")
    assert code == 0 and "all 3 steps are done already" in out and "Done" not in out
    code, out, _ = run("train-vae", "data", "--out", "vae", "--resume", "--steps", 5, *size, "--threads", 1)
    assert code == 0 and "Done: step 5." in out
    assert VAEConfig.of(json.loads(Path("vae/vae/config.json").read_text())).block_out_channels == (8, 16)
    code, _, err = run("train-vae", "data", "--out", "vae", "--resume", "--steps", 6, "--width", 16)
    assert code == 2 and "vae: was started with --width 8, not 16; leave it out" in err


def test_what_does_not_go_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    idx_set(tmp_path / "data")
    new_run(tmp_path / "unet")
    a_run(tmp_path / "vae")
    for arguments, match in (
        (("train-vae", "data", "--out", "unet", "--resume"), "unet: is a run of a U-Net, not of an autoencoder"),
        (
            ("evaluate", "vae", "--against", "data"),
            "vae: is the run of an autoencoder, which does not sample; give a run of minidiff train",
        ),
        (("train-vae", "data", "--out", "vae"), "holds a run already"),
        (("train-vae", "data", "--out", "new", "--kl", 2), "kl = 2.0: give a number above 0 and below 1"),
        (("train-vae", "data", "--out", "new", "--size", 3), "its images are 4x4"),
    ):
        before = tree(tmp_path)
        code, _, err = run(*arguments)
        assert code == 2 and match in err and err.count("\n") == 1, err
        assert tree(tmp_path) == before


def test_a_configuration_larger_than_the_weights_is_refused(tmp_path):
    """A configuration of a larger network than there are weights, before memory is asked for."""
    a_run(tmp_path)
    large = VAEConfig.of(NETWORK.to_dict() | dict(block_out_channels=(4, 16384)))
    with pytest.raises(MinidiffError, match="implies at least .* parameters"):
        read_parts(read_state(state_file(tmp_path)), lambda: (large,))
    assert isinstance(state.open_run(tmp_path), VAERun)
    refused(state.open_run, tmp_path, UNetRun, match="is a run of an autoencoder, not of a U-Net")
