"""The tokenizer against transformers' CLIPTokenizer, with merges that tokenizers' trainer learns from docs/."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Trained
from tokenizers import models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from minidiff.models.tokenizer import BOS, EOS, Special, Tokenizer, bytes_to_unicode, vocabulary

DOCS = Path(__file__).parents[2] / "docs"
VARIANTS = ("transformers' default", "as Stable Diffusion 2 was saved")


@pytest.fixture(scope="module")
def merges():
    trained = Trained(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=bytes_to_unicode(), end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator([path.read_text().lower() for path in sorted(DOCS.glob("*.md"))], trainer)
    learned = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    assert len(learned) > 1000
    return learned


@pytest.fixture(scope="module")
def both(merges, tmp_path_factory):
    """Ours and theirs: special tokens matched in the raw text; or in the normalised text, with "!" as padding."""
    vocab = vocabulary(merges)
    theirs = CLIPTokenizer(vocab, merges, model_max_length=77)
    folder = tmp_path_factory.mktemp("saved")
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)))
    named = {
        name: {"content": token, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for name, token in (("bos_token", BOS), ("eos_token", EOS), ("unk_token", EOS))
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(named | {"pad_token": "!"}))
    marked = {name: {"__type": "AddedToken", **token} for name, token in named.items()}
    settings = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "pad_token": "!", **marked}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    saved = Special(pad="!", after_clean=frozenset((BOS, EOS)))
    return {
        VARIANTS[0]: (Tokenizer(vocab, merges), theirs),
        VARIANTS[1]: (Tokenizer(vocab, merges, saved), CLIPTokenizer.from_pretrained(folder)),
    }


SNIPPETS = (
    BOS, EOS, "<|StartOfText|>", "<|", "|>", "'s", "'LL", "'", "!", "!!", " ", "\n\t", "\x1c", "\x00", "\x7f", "\u00a0",
    "\u0085", "\u200b", "Σ", "İ", "é", "e\u0301", "ǅ", "ﬁ", "ß", "½", "٣", "Ⅷ", "한국", "漢字", "カ\u3099", "😀",
    "👩\u200d👩\u200d👧", "🏳\ufe0f", "noise", "Diffusion", "the picture is", "x_t", "3.14", "don't",
)  # fmt: skip
texts = st.lists(
    st.sampled_from(SNIPPETS)
    | st.text(
        st.characters(exclude_categories=("Cs", "Cn")), max_size=6
    )  # the characters that this Python's Unicode database assigns
    | st.text("abcdefghijklmnopqrstuvwxyz '", max_size=12),
    max_size=12,
).map("".join)


@pytest.mark.parametrize("variant", VARIANTS)
def test_token_ids_equal_transformers(both, variant):
    ours, theirs = both[variant]

    @settings(max_examples=500, deadline=None)
    @given(texts)
    @example("A photograph of an astronaut riding a horse on the moon, 4k, highly detailed")
    @example("a black cat " * 250)  # 750 words, most of them truncated
    @example("")
    def equal(text):
        want = theirs(text, padding="max_length", max_length=77, truncation=True).input_ids
        assert ours([text])[0].tolist() == want

    equal()


def test_a_byte_that_is_not_in_the_vocabulary_is_unk():
    """As in the vocabularies of a thousand tokens that small test models have."""
    vocab = {token: i for i, token in enumerate([BOS, EOS, "a", "b", "a</w>", "b</w>", "ab</w>", "aa"])}
    merges = [("a", "b</w>"), ("a", "a")]
    ours, theirs = Tokenizer(vocab, merges, length=10), CLIPTokenizer(vocab, merges)
    for text in ("ab", "aab aaab", "cab", "abc", "a 漢 b"):
        assert ours([text])[0].tolist() == theirs(text, padding="max_length", max_length=10, truncation=True).input_ids


def test_one_row_per_text(both):
    ours, theirs = both[VARIANTS[0]]
    rows = ours(["cat", "a black cat", ""])
    assert rows.shape == (3, 77) and rows.tolist() == theirs(["cat", "a black cat", ""], padding="max_length").input_ids


def test_a_row_is_truncated_and_still_ends(both):
    ours, _ = both[VARIANTS[0]]
    assert ours([BOS * 80])[0].tolist() == [ours.vocab[BOS]] * 76 + [ours.vocab[EOS]]


def test_decode(both):
    ours, _ = both[VARIANTS[0]]
    assert ours.decode(ours.encode("Ça va?  漢字 😀 it's")) == "ça va ? 漢字 😀 it 's"


def test_special_tokens_that_are_not_in_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="special token '<pad>' is not in the vocabulary"):
        Tokenizer({BOS: 0, EOS: 1}, [], Special(pad="<pad>"))
    with pytest.raises(ValueError, match="length is 1: give at least 2"):
        Tokenizer({BOS: 0, EOS: 1}, [], length=1)
