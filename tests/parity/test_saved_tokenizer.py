"""A tokenizer learned of captions, saved: transformers opens the folder and gives every text the same numbers."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import json

import pytest
from transformers import CLIPTokenizer

from minidiff.data import open_dataset
from minidiff.formats.tokenizer_files import load_tokenizer, save_tokenizer
from minidiff.models.bpe import learn_merges
from minidiff.models.tokenizer import BOS, EOS, Special, Tokenizer, vocabulary

CAPTIONS = open_dataset("emoji").captions
ODD = (
    "", " ", "e\u0301", "A BLACK  cat!", "'s 'LL don't", "naïve 日本語 👩\u200d🚀 🏳\ufe0f",
    "\x00\x7f\u200b", "Σ İ ß ½ 3.14",
    f"{EOS} in between {BOS}", "<|EndOfText|> in capitals", "<| |>", "</w> w</w>", "a\tb\nc\r\n",
    "x" * 300, "zebra " * 40,
)  # fmt: skip
KINDS = {
    "plain": Special(),
    "as Stable Diffusion 2's": Special(pad="!", after_clean=frozenset((BOS, EOS))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_it_and_so_do_we(tmp_path, kind):
    merges = learn_merges(CAPTIONS, 800)
    tokenizer = Tokenizer(vocabulary(merges), merges, KINDS[kind], length=24)
    assert len(merges) == 800 and len(tokenizer.vocab) == 1314
    save_tokenizer(tokenizer, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
    }  # fmt: skip

    again, theirs = load_tokenizer(tmp_path), CLIPTokenizer.from_pretrained(tmp_path)
    assert (again.vocab, again.ranks, again.length) == (tokenizer.vocab, tokenizer.ranks, 24)
    assert again.special == tokenizer.special and theirs.model_max_length == 24
    texts = [*CAPTIONS[::3], *ODD]
    want = theirs(texts, padding="max_length", truncation=True).input_ids
    assert tokenizer(texts).tolist() == again(texts).tolist() == want


def test_a_folder_that_transformers_has_saved_again_is_the_same(tmp_path):
    merges = learn_merges(CAPTIONS, 300)
    tokenizer = Tokenizer(vocabulary(merges), merges, length=16)
    save_tokenizer(tokenizer, tmp_path / "ours")
    CLIPTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = load_tokenizer(tmp_path / "theirs")
    assert again(list(ODD)).tolist() == tokenizer(list(ODD)).tolist()
    assert json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text())["model_max_length"] == 16
