"""Prompts: weights of words against a reference of a few lines, and rows of tokens against transformers."""

import math

import numpy as np
import pytest
import small_pipeline
import small_text
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import refused

from minidiff.data.imaging import to_uint8
from minidiff.engine.tensor import no_grad
from minidiff.engine.torch_generator import torch_generator
from minidiff.evaluation.prompt_agreement import sample_prompts
from minidiff.formats.pipeline import TextPipeline
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.prompts import chunks, embeddings, escaped, num_chunks, plain, weighted
from minidiff.sampling.text_to_image import text_to_image

UP, DOWN = 1.1, 1 / 1.1


@pytest.fixture(scope="module")
def theirs():
    return small_pipeline.pipeline()


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory) -> TextPipeline:
    folder = tmp_path_factory.mktemp("prompts")
    theirs.save_pretrained(folder)
    return open_pipeline(folder)


@pytest.mark.parametrize(
    "prompt, want",
    [
        ("a black cat", [("a black cat", 1)]), ("", []), ("()", []),
        ("(cat)", [("cat", UP)]), ("[cat]", [("cat", DOWN)]),
        ("a (black:1.2) cat", [("a ", 1), ("black", 1.2), (" cat", 1)]), ("(cat:.5)", [("cat", 0.5)]),
        ("(cat:-1)", [("cat", -1)]), ("( cat : 1.5 )", [(" cat ", 1.5)]), ("(cat:1)", [("cat", 1)]),
        ("((cat))", [("cat", UP * UP)]), ("((cat:1.5) sat:2)", [("cat", 3), (" sat", 2)]),
        ("[(cat)]", [("cat", UP * DOWN)]), ("(a [b] c:2)", [("a ", 2), ("b", 2 * DOWN), (" c", 2)]),
        (r"a \(black\) cat", [("a (black) cat", 1)]), (r"(\(:1.2)", [("(", 1.2)]), (r"\\(a)", [("\\", 1), ("a", UP)]),
        (r"\[a\] \b", [(r"[a] \b", 1)]), ("(flag: Chad)", [("flag: Chad", UP)]), ("(a:1:2)", [("a:1", 2)]),
        ("a:1.2", [("a:1.2", 1)]), ("[a:1.2]", [("a:1.2", DOWN)]), ("(a:)", [("a:", UP)]), ("(a:1_0)", [("a:1_0", UP)]),
        ("(:2)b", [("b", 1)]), ("(a)(b)", [("ab", UP)]), ("\\", [("\\", 1)]),
    ],
)  # fmt: skip
def test_the_syntax_of_weights(prompt, want):
    got = weighted(prompt)
    assert [text for text, _ in got] == [text for text, _ in want]
    np.testing.assert_allclose([weight for _, weight in got], [weight for _, weight in want], rtol=1e-15)
    assert plain(prompt) == "".join(text for text, _ in want)


def test_brackets_that_are_refused():
    for prompt in ("(", ")", "[", "]", "(a]", "[a)", "((a)", "a)(", r"\((", "(a\\)"):
        refused(weighted, prompt, match=r"the prompt .* has [()\[\]] (without|that is not closed)")
    for prompt in ("(a:nan)", "(a:inf)", "(a:-inf)", "(a:1e999)", "((a:11):-10)", "(" * 99 + "a" + ")" * 99):
        refused(weighted, prompt, match="has a weight beyond 100, or none that is a number")


def test_files_that_a_prompt_names_are_refused():
    refused(weighted, "a cat <lora:Mine v2:0.8>", match="has <lora:Mine v2:0.8>, which is no text; give --lora PATH")
    assert weighted("<lora> <lora:") == [("<lora> <lora:", 1.0)]


@settings(deadline=None)
@given(st.text(r"ab:1.2()[]\ ", max_size=20))
def test_escaped_texts_are_themselves(text):
    assert weighted(escaped(text)) == ([(text, 1.0)] if text else [])


def of_reference(pipeline, words, T=77):
    """Embeddings of (word, weight) pairs, a token each, in one row: the rule in NumPy."""
    with no_grad():
        z, z_empty = (pipeline.text_encoder(pipeline.tokenizer([text])).numpy()[0] for text in (" ".join(words), ""))
    w = np.ones((T, 1), np.float32)
    w[1 : len(words) + 1, 0] = list(words.values())
    return (1 - w) * z_empty + w * z


def test_weights_against_the_reference(ours):
    words = {"black": 1.3, "cat": 0.0, "a": 1.0, "!": -0.5}
    got = embeddings(ours, ["(black:1.3) (cat:0) a (!:-0.5)"])
    np.testing.assert_allclose(got[0], of_reference(ours, words), atol=1e-5)
    alone = embeddings(ours, ["black cat a !"])
    np.testing.assert_array_equal(got[0, [0, 3, *range(5, 77)]], alone[0, [0, 3, *range(5, 77)]])  # those of weight 1
    assert (got[0, [1, 2, 4]] != alone[0, [1, 2, 4]]).any(-1).all()


def test_weights_of_one_are_bit_identical(ours):
    with no_grad():
        want = ours.text_encoder(ours.tokenizer(["a black cat", "cat"])).numpy()
    for prompts in (
        ["a black cat", "cat"],
        ["a (black:1) cat", "(cat:1.0)"],
        ["([a black cat:1.1])".replace("[", "").replace("]", "").replace("1.1", "1"), "cat"],
    ):
        np.testing.assert_array_equal(embeddings(ours, prompts), want)


def test_rows_of_long_prompts_against_transformers(ours, theirs):
    """75 tokens each between start and end tokens, encoded on their own, one after the other."""
    words = ["a", "black", "cat", "!"] * 40
    short = ["cat"]
    rows = [words[:75], words[75:150], words[150:]]
    texts = [" ".join(row) for row in [*rows, short, [], []]]
    ids = theirs.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert num_chunks(ours.tokenizer, [" ".join(words), "cat"]) == 3
    np.testing.assert_array_equal(chunks(ours.tokenizer, " ".join(words))[0], ids[:3])
    with torch.no_grad():
        want = theirs.text_encoder(ids)[0].numpy().reshape(2, 3 * 77, -1)
    got = embeddings(ours, [" ".join(words), "cat"])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got[1:, :77], embeddings(ours, ["cat"] * 6)[:1])  # of as many rows


@pytest.mark.parametrize("n, want", [(0, 1), (1, 1), (75, 1), (76, 2), (150, 2), (151, 3)])
def test_as_few_rows_as_hold_the_tokens(ours, n, want):
    ids, weights = chunks(ours.tokenizer, "(" + "cat " * n + ":1.5)")
    assert ids.shape == weights.shape == (want, 77)
    assert (weights == 1.5).sum() == n and (ids == ours.tokenizer.vocab["cat</w>"]).sum() == n
    assert (ids[:, 0] == ours.tokenizer.vocab["<|startoftext|>"]).all()
    np.testing.assert_array_equal(ids[weights == 1.5], ours.tokenizer.vocab["cat</w>"])


@pytest.mark.parametrize("prompt, negative", [("cat black " * 60, "a"), ("cat", "black ! " * 60)])
def test_images_of_long_prompts_against_diffusers(ours, theirs, prompt, negative):
    """Which takes embeddings of any length, given as such."""
    rows = num_chunks(ours.tokenizer, [prompt, negative])
    positive, null = (torch.from_numpy(embeddings(ours, [text], rows)) for text in (prompt, negative))
    assert positive.shape == null.shape == (1, 2 * 77, 16)
    want = theirs(
        prompt_embeds=positive, negative_prompt_embeds=null, num_inference_steps=4, guidance_scale=4, output_type="np",
        generator=torch.Generator().manual_seed(3), height=32, width=32,
    ).images  # fmt: skip
    got = text_to_image(ours, [prompt], negative, 4, 4, torch_generator(3))
    difference = np.abs(to_uint8(got).astype(int) - np.rint(want * 255))
    assert (difference <= 1).mean() >= 0.999
    other = text_to_image(ours, [prompt[:350]], negative[:350], 4, 4, torch_generator(3))  # 60 words or so
    assert (np.abs(other - got) > 1 / 255).any()


def test_a_short_prompt_beside_a_long_one(ours):
    """In one batch all have as many rows; alone each has its own."""
    images = text_to_image(ours, ["cat", "black " * 80], "", 2, 2, torch_generator(0))
    assert images.shape[0] == 2 and math.isfinite(float(images.sum()))


def test_captions_are_no_prompts_with_weights(tmp_path):
    """Those of a dataset, for samples of a run and for its evaluation."""
    run = small_text.new_text_run(tmp_path / "run")
    run.samples_of(["red (bar", "green] bar"])
    captions = ["red (bar:1.5)", r"a \(b\)"]
    got = sample_prompts(run.pipeline, captions, 2.0, 3, 0, lambda: None)
    literal = text_to_image(run.pipeline, list(map(escaped, captions)), "", 2.0, 3, np.random.default_rng(0))
    np.testing.assert_array_equal(got, to_uint8(literal))
    with_weights = text_to_image(run.pipeline, captions, "", 2.0, 3, np.random.default_rng(0))
    assert (to_uint8(with_weights) != got).any()
