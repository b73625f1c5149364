"""minidiff explain: its sheets, and the cross-attention maps on them."""

import numpy as np
import pytest
import small_pipeline
from PIL import Image
from small_runs import go_on, refused, tree
from small_text import bars, new_text_run, tokenizer

from minidiff.engine.tensor import Tensor
from minidiff.formats.run_networks import kept_pipelines
from minidiff.models.text_unet import Attention, TextUNet
from minidiff.sampling import text_sheets
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.prompts import chunks
from minidiff.sampling.text_sheets import (
    PromptSettings,
    attention_maps,
    guidance_sheet,
    recorded_attention,
    replaced_words,
    token_spans,
    training_sheet,
    word_replacement_sheet,
)

SETTINGS = PromptSettings("red bar, lying", 2.0, 2)


@pytest.fixture
def shown(monkeypatch):
    """The images and captions of every sheet."""
    sheets = []
    monkeypatch.setattr(
        text_sheets, "captioned_sheet", lambda images, captions, columns: sheets.append((images, captions))
    )
    return sheets


@pytest.fixture
def parts(tmp_path):
    go_on(new_text_run(tmp_path / "run"), 2, dataset=bars(), keep=3)
    return open_pipeline(tmp_path / "run", "numpy")


def test_words_are_replaced_one_by_one():
    assert replaced_words("a red bar", "a blue hat") == ["a red bar", "a blue bar", "a blue hat"]
    assert replaced_words("same", "same") == ["same"]
    refused(replaced_words, "a red bar", "hat", match="--to has 1 words and --prompt 3: give as many")


def test_token_spans_of_words():
    """red</w> is one token, b a r</w> three, the comma one, li y i ng</w> four; eight fit a row of ten."""
    words = ["red", "bar,", "lying"]
    assert token_spans(tokenizer(), words) == [[1], [2, 3, 4, 5], [6, 7, 8, 11]]
    ids = tokenizer().encode("red bar, lying")
    assert [len(tokenizer().encode(word)) for word in words] == [1, 4, 4] and len(ids) == 9
    rows, _ = chunks(tokenizer(), "red bar, lying")
    assert rows.reshape(-1)[[1, *range(2, 6), *range(6, 9), 11]].tolist() == ids
    spans = token_spans(tokenizer(), ["lying"] * 5)
    assert spans == [[*range(i, i + 4)] for i in (1, 5, 11, 15, 21)]


def test_every_image_starts_from_the_same_noise(parts, shown, tmp_path):
    guidance_sheet(parts, SETTINGS)
    (images, captions), others = shown[0], shown
    assert captions[0] == "guidance 1" and captions[-1] == "guidance 10" and len(images) == 10
    np.testing.assert_array_equal(images[1], SETTINGS.sample(parts)[0])
    assert (images[9] != images[0]).any()
    word_replacement_sheet(parts, SETTINGS, "blue bar, lying")
    assert others[1][1] == ["red bar, lying", "blue bar, lying"]
    np.testing.assert_array_equal(others[1][0][0], images[1])
    assert (others[1][0][1] != images[1]).any()


def test_the_training_sheet_has_an_image_of_each_checkpoint(parts, shown):
    """By its averaged weights: the last is the folder's own image."""
    training_sheet(SETTINGS, kept_pipelines(parts))
    images, captions = shown[0]
    assert captions == ["step 4", "step 6", "step 8"]
    np.testing.assert_array_equal(images[2], SETTINGS.sample(parts)[0])
    assert (images[0] != images[2]).any()


def test_recorded_weights_are_those_of_attention(backend):
    """With one head, weights times values give the layer's output."""
    rng = np.random.default_rng(0)
    attention = Attention(8, 6, 1, rng).to(backend.name)
    x, context, add = (Tensor(backend.asarray(rng.standard_normal(s, dtype=np.float32)), backend)
                     for s in ((2, 9, 8), (2, 5, 6), (2, 9, 8)))  # fmt: skip
    weights = []
    got = text_sheets._recording(attention, weights)(x, context, add).numpy()
    np.testing.assert_array_equal(got, attention(x, context, add).numpy())
    values = attention.to_v(context).numpy()[0]
    out = Tensor(backend.asarray((weights[0] @ values)[None]), backend)
    want = attention.to_out[0](out).numpy()[0] + add.numpy()[0]
    np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-5)
    assert len(weights) == 1 and weights[0].shape == (9, 5)


def test_weights_are_recorded_within_the_block_only(parts):
    """By each of four layers at each of two steps; the image does not change."""
    before = SETTINGS.sample(parts)
    with recorded_attention(parts.unet) as weights:
        np.testing.assert_array_equal(SETTINGS.sample(parts), before)
    assert len(weights) == 4 * 2 and all(w.shape == (64, 20) for w in weights)
    np.testing.assert_allclose([w.sum(1) for w in weights], 1, rtol=1e-5)
    assert (weights[0] != weights[-1]).any()
    SETTINGS.sample(parts)
    assert len(weights) == 8
    with pytest.raises(ZeroDivisionError), recorded_attention(parts.unet):
        1 / 0  # noqa: B018
    assert all(isinstance(block.attn2, Attention) for block in text_sheets._blocks(parts.unet))
    assert (
        dict(parts.unet.named_parameters()).keys() == dict(TextUNet(parts.unet.config, None).named_parameters()).keys()
    )


def test_maps_of_all_tokens_add_up_to_one():
    """Maps of lower resolutions are enlarged; a constant map stays constant."""
    rng = np.random.default_rng(0)
    weights = [rng.random((n, 3), np.float32) for n in (8 * 4, 8 * 4, 4 * 2)]
    weights = [w / w.sum(1, keepdims=True) for w in weights]
    maps = attention_maps(weights, [slice(0, 1), slice(1, 3)], (8, 4))
    np.testing.assert_allclose(maps.sum(0), 1, rtol=1e-5)
    even = [np.full((n, 2), 0.5, np.float32) for n in (32, 8)]
    np.testing.assert_allclose(attention_maps(even, [slice(0, 1)], (8, 4)), 0.5, rtol=1e-6)
    lower = np.zeros((32, 2), np.float32)
    lower[16:, 0] = 1  # rows 4 to 7
    assert attention_maps([lower], [slice(0, 1)], (8, 4))[0].argmax() >= 16


def test_from_the_command_line(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    go_on(new_text_run(tmp_path / "run"), 4, dataset=bars())
    command = ("explain", "run", "--prompt", "red bar, lying", "--steps", 1, "--threads", 1, "--backend", "numpy")
    code, out, err = run(*command, "--to", "blue bar, lying")
    assert (code, err) == (0, "") and "15/15" in out and "Wrote explained" in out
    assert set(tree(tmp_path / "explained")) == {
        f"{name}.png" for name in ("attention", "guidance", "training", "words")
    }
    with Image.open("explained/training.png") as both, Image.open("explained/attention.png") as four:
        assert four.width > 1.8 * both.width
    code, _, err = run(*command)
    assert code == 2 and "explained: is there already" in err
    code, _, err = run(*command, "--to", "hat", "--out", "new")
    assert code == 2 and "--to has 1 words" in err and not (tmp_path / "new").exists()


def test_a_stable_diffusion_folder(run, tmp_path, monkeypatch):
    """All sheets but that of training progress."""
    monkeypatch.chdir(tmp_path)
    small_pipeline.saved(tmp_path / "sd")
    code, _, _ = run("explain", "sd", "--prompt", "cat " * 80, "--steps", 1, "--threads", 1, "--out", "new")
    assert code == 0 and set(tree(tmp_path / "new")) == {"attention.png", "guidance.png"}
