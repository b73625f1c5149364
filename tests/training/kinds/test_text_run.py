"""minidiff train --text: runs on captions, in pixels and in latents, from the first step to a picture of a prompt."""

import dataclasses
import json
import os

import numpy as np
import pytest
import small_text
from PIL import Image
from small_runs import contents, go_on, idx_set, new_run, read_safetensors, refused, reopen, tree
from small_text import bars, new_text_run, tokenizer

import minidiff as md
from minidiff.data.batches import batch_indices
from minidiff.data.imaging import to_float, to_uint8
from minidiff.engine.tensor import Tensor
from minidiff.formats.run_state import states
from minidiff.formats.tokenizer_files import save_tokenizer
from minidiff.formats.weights import write_safetensors
from minidiff.models.default_configs import default_text_encoder, default_text_unet
from minidiff.models.text_encoder import TextEncoder
from minidiff.models.text_unet import TextUNet
from minidiff.models.tokenizer import Tokenizer, vocabulary
from minidiff.models.vae import Pixels
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import image_to_image, text_to_image
from minidiff.training import start, start_text, state
from minidiff.training.checkpoints import read_losses
from minidiff.training.kinds import text_run
from minidiff.training.kinds.text_run import TextRun
from minidiff.training.loop import validation_loss

KINDS = {
    "pixels": {}, "latents": {"latent": True}, "frozen": {"frozen": True}, "all": {"latent": True, "frozen": True},
}  # fmt: skip


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, kind, backend):
    changes = {**KINDS[kind], "backend": backend, "accumulate": 2}
    go_on(new_text_run(tmp_path / "whole", **changes), dataset=bars())
    go_on(new_text_run(tmp_path / "run", **changes), stop_at=5, dataset=bars())
    again = reopen(tmp_path / "run")
    assert isinstance(again, TextRun) and again.step == 5
    go_on(again, dataset=bars())
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_to_learn_does(tmp_path, kind):
    """Every array of the U-Net and of a text encoder that is not frozen; nothing of what is."""
    run = new_text_run(tmp_path, **KINDS[kind])
    parts = {"unet": run.pipeline.unet, "text_encoder": run.pipeline.text_encoder, "vae": run.pipeline.vae}
    before = {name: part.state_dict() for name, part in parts.items() if not isinstance(part, Pixels)}
    go_on(run, dataset=bars())
    for name, arrays in before.items():
        learns = name not in run.frozen
        for key, a in parts[name].state_dict().items():
            assert (a != arrays[key]).any() == learns, f"{name}.{key}"
    assert ("text_encoder" in run.frozen) == ("frozen" in kind or kind == "all")


def test_each_picture_has_its_caption_but_for_those_that_are_dropped(tmp_path):
    run, dataset = new_text_run(tmp_path, label_dropout=0.3), bars()
    make_batch, ids = run.batches(dataset), tokenizer()(list(dataset.captions))
    (empty,) = tokenizer()([""])
    dropped = 0
    for step in range(1, 101):
        x0, texts = make_batch(step)
        index = batch_indices(len(dataset), step, 4, run.config.seed)
        np.testing.assert_array_equal(x0, to_float(dataset.take(index)))
        for i, text in zip(index, texts, strict=True):
            assert (text == ids[i]).all() or (text == empty).all()
            dropped += (text == empty).all()
    assert 0.22 < dropped / 400 < 0.38  # 3.5 standard deviations, sqrt(0.3 0.7 / 400) each
    np.testing.assert_array_equal(make_batch(7)[1], make_batch(7)[1])


def test_latents_are_drawn_anew_and_scaled(tmp_path):
    run = new_text_run(tmp_path, latent=True)
    x0, vae = to_float(bars().take(np.arange(6))), run.pipeline.vae
    first, same, other = (run._latents(x0, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert first.shape == (6, 4, 4, 3) and (first != other).all()
    eps, rng = [], np.random.default_rng(1)
    for n in (4, 2):  # a batch is of four
        eps.append(rng.standard_normal((n, 4, 4, 3), dtype=np.float32))
    posterior = vae.encode(x0)
    want = np.float32(0.7) * (posterior.mean + posterior.std * np.concatenate(eps))
    np.testing.assert_allclose(first, want, rtol=1e-4, atol=1e-6)  # one picture after another, rounded otherwise


def test_pixels_are_the_pictures(tmp_path):
    run, x0 = new_text_run(tmp_path), to_float(bars().take(np.arange(6)))
    np.testing.assert_array_equal(run._latents(x0, np.random.default_rng(0)), x0)


def test_the_probe_asks_for_each_picture_s_own_caption(tmp_path):
    run, dataset = new_text_run(tmp_path), bars()
    go_on(run, dataset=dataset)
    turned = dataclasses.replace(dataset, captions=dataset.captions[::-1])
    assert read_losses(tmp_path)[8] == validation_loss(run, dataset) != validation_loss(run, turned)


def test_the_folder_draws_what_the_run_draws(tmp_path):
    """The averaged weights, by the prompts and noise of the sheet."""
    run = new_text_run(tmp_path, latent=True)
    go_on(run, dataset=bars())
    with run.optimizer.averaged():
        want = text_to_image(run.pipeline, ["red bar"], steps=3, rng=np.random.default_rng(0))
    parts = open_pipeline(tmp_path, "numpy")
    np.testing.assert_array_equal(text_to_image(parts, ["red bar"], steps=3, rng=np.random.default_rng(0)), want)
    assert parts.sampler == run.pipeline.sampler and parts.vae.config == run.pipeline.vae.config


def test_what_draws_pixels_redraws_too(tmp_path):
    """At strength 0 a picture stays as it is: there is no autoencoder that would change it."""
    new_text_run(tmp_path)
    parts, x0 = open_pipeline(tmp_path, "numpy"), to_float(bars().take(np.arange(1)))
    assert isinstance(parts.vae, Pixels)
    np.testing.assert_array_equal(image_to_image(parts, ["red bar"], x0, strength=0, steps=3), x0)
    assert (image_to_image(parts, ["red bar"], x0, strength=1, steps=3) != x0).any()


def test_the_sheet_shows_both_sets(tmp_path, monkeypatch):
    run, shown = new_text_run(tmp_path), []
    other = dataclasses.replace(bars(), captions=("a", "b", *["c"] * 8))
    monkeypatch.setattr(text_run, "SHEET_IMAGES", 4)
    monkeypatch.setattr(text_run, "captioned_sheet", lambda images, captions: shown.append((images, captions)))
    run.sheet(bars(), other)
    (images, captions), dataset = shown[0], bars()
    assert captions == [dataset.captions[0], dataset.captions[9], "a", "c"] and images.shape == (4, 8, 8, 3)
    run.sheet(bars(), other)
    np.testing.assert_array_equal(shown[1][0], images)


def test_it_learns_words(tmp_path):
    """Red or blue all over, from a fair share of noise: in the end the text decides, whatever the noise."""
    colours = np.zeros((8, 8, 8, 3), np.uint8)
    colours[::2, ..., 0] = colours[1::2, ..., 2] = 255
    dataset = dataclasses.replace(bars(8), take=colours.__getitem__, captions=("red", "blue") * 4)
    run = new_text_run(tmp_path, 150, lr=0.01, ema=0.9)
    go_on(run, 150, dataset=dataset)
    images = text_to_image(open_pipeline(tmp_path, "numpy"), ["red", "blue"] * 2, guidance=2, steps=8,
                           rng=np.random.default_rng(0))  # fmt: skip
    red, blue = images[..., 0].mean((1, 2)), images[..., 2].mean((1, 2))
    assert (np.sign(red - blue) == [1, -1, 1, -1]).all()


@pytest.mark.parametrize("part", ["tokenizer", "vae", "text_encoder"])
def test_a_part_that_is_another_one_is_noticed(tmp_path, part):
    """Nothing is wrong with its files but that."""
    run = new_text_run(tmp_path, latent=True, frozen=True)
    if part == "tokenizer":
        vocab = run.pipeline.tokenizer.vocab
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    else:
        getattr(run.pipeline, part).parameters()[-1].data[...] += 1
    run.prepare()
    refused(state.open_run, tmp_path, match=f"{part}: is not the one that the run was started with")


@pytest.mark.parametrize("name", ["tokenizer/vocab.json", "vae/config.json", "text_encoder/config.json"])
def test_a_damaged_part_is_not_taken_for_a_damaged_state(tmp_path, name):
    """Its states are whole, and are not said to be damaged."""
    new_text_run(tmp_path, latent=True, frozen=True)
    (tmp_path / name).write_text("{")
    refused(state.open_run, tmp_path, match=rf"^{tmp_path / name}: not JSON; copy or write it again$")


@pytest.mark.parametrize("frozen", ["5", "null", '["vae"]'])
def test_damaged_digests(tmp_path, frozen):
    new_text_run(tmp_path, latent=True)
    for path in states(tmp_path):
        if path.is_file():
            tensors, metadata = read_safetensors(path)
            write_safetensors(path, tensors, {**metadata, "frozen": frozen})
    refused(state.open_run, tmp_path, match=r"state\.safetensors: the digests .* are damaged")


def test_an_export_is_whole(tmp_path):
    run = new_text_run(tmp_path / "run", latent=True, frozen=True)
    state.export(run, tmp_path / "out")
    names = set(tree(tmp_path / "out"))
    assert {"model_index.json", "tokenizer", "text_encoder", "unet", "vae", "scheduler"} <= names
    assert "training" not in names and open_pipeline(tmp_path / "out", "numpy").tokenizer.length == 10


def test_the_default_networks():
    for shape, widths in (((32, 32, 3), (32, 64, 96, 96)), ((8, 8, 12), (64, 128))):
        unet = TextUNet(config := default_text_unet(shape, 128), None, "numpy")
        assert config.block_out_channels == widths and 1e6 < sum(p.data.size for p in unet.parameters()) < 5e6
        assert [name.startswith("CrossAttn") for name in config.down_block_types] == [n != 32 for n in
                [shape[0] >> level for level in range(len(widths))]]  # fmt: skip
    assert default_text_unet((32, 32, 3), 128, 64, 2).block_out_channels == (64, 128)
    for width in (48, 0):
        refused(
            default_text_unet, (8, 8, 3), 128, width, match=f"width {width}: give a multiple of 32, from 32 to 4096"
        )
    refused(default_text_unet, (8, 8, 3), 128, 32, 5, match="depth 5: does not go with 8x8 pixels; give 1 to 4 levels")
    encoder = TextEncoder(default_text_encoder(2048, 32), None, "numpy")
    assert 1e6 < sum(p.data.size for p in encoder.parameters()) < 2e6


# The command line

QUICK = ("--backend", "numpy", "--threads", 1, "--batch-size", 2, "--steps", 2)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The set `bars` by that name, networks as small as can be, few pictures on sheets."""
    monkeypatch.chdir(tmp_path)

    def open_dataset(data, size=None, split="train", progress=None, skip=None, notice=None):
        return bars() if os.path.basename(data) == "bars" else md.open_dataset(data, size, split, progress, skip)

    monkeypatch.setattr(start, "open_dataset", open_dataset)
    monkeypatch.setattr(start_text, "MERGES", 5)
    monkeypatch.setattr(text_run, "SHEET_IMAGES", 2)
    monkeypatch.setattr(text_run, "SHEET_STEPS", 2)


def test_from_nothing_to_a_picture(run, small, tmp_path):
    size = ("--width", 32, "--depth", 1)
    code, out, err = run("train", "bars", "--text", "--out", "run", *size, *QUICK)
    assert (code, err) == (0, "")
    assert "Done: step 2. To sample: minidiff sample run --prompt 'red bar, lying'" in out
    with Image.open("run/samples/step-000002.png") as image:
        assert image.width > 96
    code, out, err = run("sample", "run", "--prompt", "red bar", "--steps", 2, "--threads", 1, "--npz", "a.npz",
                         "--backend", "numpy")  # fmt: skip
    assert (code, err) == (0, "")
    parts = open_pipeline("run", "numpy")
    assert parts.unet.config.block_out_channels == (32,)
    want = text_to_image(parts, ["red bar"], steps=2, rng=np.random.default_rng(0))
    with np.load("a.npz") as file:
        np.testing.assert_array_equal(file["arr_0"], to_uint8(want))
    resume = ("train", "bars", "--text", "--out", "run", "--resume", "--steps", 3, "--threads", 1)
    code, _, err = run(*resume, "--depth", 2)
    assert code == 2 and "run: was started with --depth 1, not 2; leave it out" in err
    code, out, err = run(*resume, *size)
    assert (code, err) == (0, "") and "Done: step 3." in out


def test_in_the_latents_of_an_autoencoder_that_was_trained_here(run, small):
    """Scaled so that they spread by 1."""
    assert run("train-vae", "bars", "--out", "vae", *QUICK)[0] == 0
    code, out, err = run("train", "bars", "--text", "--latent", "vae", "--out", "run", *QUICK)
    assert (code, err) == (0, "") and "Latents: 2x2x12, of standard deviation" in out
    parts = open_pipeline("run", "numpy")
    x0 = to_float(bars().take(np.arange(10)))
    latents = parts.vae.encode(x0).sample(np.random.default_rng(0)) * parts.vae.config.scaling_factor
    assert abs(latents.std() - 1) < 0.2  # of 480 numbers that are not independent, by other noise
    code, _, err = run("sample", "run", "--prompt", "red bar", "--steps", 2, "--threads", 1)
    assert (code, err) == (0, "")


def test_with_a_text_encoder_from_elsewhere(run, small, tmp_path):
    there = new_text_run(tmp_path / "there", steps=1)
    code, out, err = run("train", "bars", "--text", "--text-encoder", "there", "--out", "run", *QUICK)
    assert (code, err) == (0, "")
    parts = open_pipeline("run", "numpy")
    for name, a in parts.text_encoder.state_dict().items():
        np.testing.assert_array_equal(a, there.pipeline.text_encoder.state_dict()[name])
    assert parts.tokenizer.length == 10
    _, metadata = read_safetensors(state.state_file(tmp_path / "run"))
    assert set(json.loads(metadata["frozen"])) == {"tokenizer", "text_encoder"}


@pytest.mark.parametrize("changes", [{"length": 11}, {"merges": 1}])
def test_a_text_encoder_that_does_not_know_its_tokenizer(run, small, tmp_path, changes):
    """Texts that are too long, or tokens that are too many."""
    new_text_run(tmp_path / "there")
    merges = small_text.MERGES + [("a", "b")] * changes.get("merges", 0)
    other = Tokenizer(vocabulary(merges), merges, length=changes.get("length", 10))
    save_tokenizer(other, tmp_path / "there" / "tokenizer")
    code, _, err = run("train", "bars", "--text", "--text-encoder", "there", "--out", "new", *QUICK)
    assert code == 2 and "there: its tokenizer has more tokens, or longer texts, than its text encoder" in err


def test_grey_pictures(run, small, monkeypatch):
    """In pixels; they are drawn as grey ones."""
    monkeypatch.setattr(start, "open_dataset", lambda data, *rest, **more: bars(channels=1))
    assert run("train", "bars", "--text", "--out", "run", *QUICK)[0] == 0
    images = text_to_image(open_pipeline("run", "numpy"), ["bar"], steps=2)
    assert images.shape == (1, 8, 8, 1)
    assert run("sample", "run", "--prompt", "red bar", "--steps", 2, "--threads", 1)[0] == 0


def test_what_does_not_go_is_refused(run, small, tmp_path):
    idx_set(tmp_path / "data")
    new_run(tmp_path / "unet")
    new_text_run(tmp_path / "texts")
    for arguments, match in (
        (("data", "--text"), "data: its images have no captions; add a captions.csv"),
        (("bars", "--text", "--by-class"), "--by-class does not go with --text"),
        (("bars", "--text", "--recipe", "ddpm"), "--recipe does not go with --text"),
        (("bars", "--text", "--objective", "flow"), "--objective flow: with --text choose epsilon, sample or v_pred"),
        (("bars", "--text", "--latent", "nowhere"), "nowhere: no such folder; give a run of minidiff train-vae"),
        (
            ("bars", "--text", "--latent", "unet"),
            "unet: is the run of a U-Net that takes no prompt; give a run of minidiff train-vae",
        ),
        (("bars", "--text", "--text-encoder", "nowhere"), "nowhere: no such folder; give a run of minidiff train"),
        (("bars", "--text", "--text-encoder", "unet"), "unet: is the run of a U-Net that takes no prompt"),
        (("bars", "--latent", "vae"), "--latent needs --text: add it"),
    ):
        before = tree(tmp_path)
        code, _, err = run("train", *arguments, "--out", "new", "--threads", 1)
        assert code == 2 and match in err and err.count("\n") == 1, err
        assert tree(tmp_path) == before
    for arguments, match in (
        (("train", "bars", "--text", "--out", "unet", "--resume"), "unet: was started without --text; leave it out"),
        (
            ("train", "bars", "--text", "--out", "texts", "--resume", "--objective", "epsilon"),
            "with --objective v_prediction, not epsilon",
        ),
        (("train", "bars", "--text", "--out", "texts"), "texts: holds a run already"),
        (("sample", "texts"), "texts: is the run of a text-conditional U-Net, which needs a prompt; give --prompt"),
    ):
        code, _, err = run(*arguments)
        assert code == 2 and match in err and err.count("\n") == 1, err


def test_an_autoencoder_for_other_pictures(run, small, tmp_path, monkeypatch):
    new_text_run(tmp_path / "there", latent=True)
    monkeypatch.setattr(start, "open_dataset", lambda data, *rest, **more: bars(channels=1))
    code, _, err = run("train", "bars", "--text", "--latent", "there", "--out", "new", *QUICK)
    assert code == 2 and "is for images of 3 channels, these have 1" in err


def test_the_model_hears_what_it_is_given(tmp_path):
    """cond are tokens; the text encoder is inside."""
    run, ids = new_text_run(tmp_path), tokenizer()(["red bar", "lying"])
    x_t, t = np.zeros((2, 8, 8, 3), np.float32), np.array([3, 20])
    text = run.pipeline.text_encoder(ids)
    want = run.pipeline.unet(x_t, t, text).numpy()
    got = run.model(x_t, t, cond=ids)
    assert isinstance(got, Tensor)
    np.testing.assert_array_equal(got.numpy(), want)
    assert (run.model(x_t, t, cond=ids[::-1]).numpy() != want).any()
