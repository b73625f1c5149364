"""Files of textual inversion that are not what they should be, and what a pipeline with new words does to its own."""

import re

import numpy as np
import pytest
from safetensors.numpy import save_file
from small_runs import refused, tree
from small_text import new_text_run

from minidiff.formats.embedding_files import LEARNED_EMBEDS, load_embedding, save_embedding
from minidiff.models.textual_inversion import rows
from minidiff.sampling.embeddings import with_embeddings, with_words
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import embeddings, with_prompts


@pytest.fixture
def pipeline(tmp_path):
    return with_prompts(open_pipeline(new_text_run(tmp_path / "MODEL").folder, "numpy", kind="text"))


@pytest.fixture
def file(tmp_path):
    return tmp_path / LEARNED_EMBEDS


V = np.arange(16, dtype=np.float32).reshape(2, 8)

WRONG = {
    "width": ({"<zib>": np.zeros((2, 768), np.float32)}, "vectors (2, 768) are not of 8 values, as those of .*MODEL"),
    "one of another width": ({"<zib>": np.zeros(768, np.float32)}, "vectors (768,) are not of 8 values"),
    "axes": ({"<zib>": np.zeros((1, 2, 8), np.float32)}, "vectors (1, 2, 8) are not of 8 values"),
    "a number": ({"<zib>": np.array(1, np.float32)}, "vectors () are not of 8 values"),
    "no vector": ({"<zib>": np.zeros((0, 8), np.float32)}, "has 0 vectors; give 1 to 75"),
    "too many": ({"<zib>": np.zeros((76, 8), np.float32)}, "has 76 vectors; give 1 to 75"),
    "two words": ({"<zib>": V, "<zab>": V}, "has 2 arrays: <zab>, <zib>; give a file of one word"),
    "two encoders": ({"clip_l": V, "clip_g": V}, "has 2 arrays: clip_g, clip_l; give a file of one word"),
    "none": ({}, "has 0 arrays"),
    "not finite": ({"<zib>": V + np.nan}, "has values that are not finite"),
    "a token": ({"red": V}, "'red' is in the model's vocabulary; give another word, such as <red>"),
    "special": ({"<|endoftext|>": V}, "'<|endoftext|>' is in the model's vocabulary"),
    "special within": ({"<|endoftext|>zib": V}, "'<|endoftext|>zib' is no word"),
    "a letter": ({"Z": V}, "'Z' is in the model's vocabulary"),
    "blank": ({" ": V}, "' ' is no word; give one such as <robot>"),
    "empty": ({"": V}, "'' is no word"),
    "spaces": ({"two  words": V}, "'two  words' is no word"),
    "integers": ({"<zib>": V.astype(np.int32)}, "<zib> is I32"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_file(case, pipeline, file):
    arrays, match = WRONG[case]
    save_file(arrays, file)
    refused(load_embedding, file, pipeline, match=re.escape(match).replace(r"\.\*", ".*"))


def test_there_and_back(pipeline, file):
    save_embedding(file, "<Zib> the 2nd", V)
    word, vectors = load_embedding(file.parent, pipeline)
    assert word == "<Zib> the 2nd"
    np.testing.assert_array_equal(vectors, V)


def test_a_file_that_is_cut_off_missing_or_a_pickle(pipeline, file, tmp_path):
    save_embedding(file, "<zib>", V)
    whole = file.read_bytes()
    for length in (0, 7, 40, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused(load_embedding, file, pipeline, match="damaged or not safetensors")
    refused(load_embedding, tmp_path / "none", pipeline, match="none: no such file")
    (tmp_path / "learned_embeds.bin").write_bytes(b"")
    refused(load_embedding, tmp_path / "learned_embeds.bin", pipeline, match="is a pickle")


def test_two_files_of_one_word(pipeline, tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, word in zip(paths, ("<zib>", "<ZIB>"), strict=True):
        save_embedding(path, word, V)
    refused(with_embeddings, pipeline, paths, match="b.safetensors: <ZIB> is the word of another file too")


def test_the_pipeline_and_its_folder_stay_as_they_are(pipeline, file):
    before, (own,), files = pipeline.tokenizer.encode("<zib>"), embeddings(pipeline, ["red <zib>"]), tree(file.parent)
    save_embedding(file, "<zib>", V)
    known = with_embeddings(pipeline, [file])
    file.unlink()
    assert known.tokenizer.encode("a <ZIB>!")[1:3] == [
        rows(pipeline.text_encoder.embeddings.token_embedding) + i for i in (0, 1)
    ]
    assert pipeline.tokenizer.encode("<zib>") == before and tree(file.parent) == files
    np.testing.assert_array_equal(embeddings(pipeline, ["red <zib>"])[0], own)
    assert np.abs(embeddings(known, ["red <zib>"])[0] - own).max() > 1e-2
    np.testing.assert_array_equal(embeddings(known, ["red bar"]), embeddings(pipeline, ["red bar"]))
    assert with_words(pipeline, {}) is pipeline


def test_words_after_words(pipeline):
    """One after the other, or both at once: the same."""
    words = {"<zib>": V, "<zab>": V[:1] - 3}
    both, one = with_words(pipeline, words), pipeline
    for word, vectors in words.items():
        one = with_words(one, {word: vectors})
    texts = ["<zab> <zib> red", "<zib><zab>"]
    np.testing.assert_array_equal(one.tokenizer(texts), both.tokenizer(texts))
    np.testing.assert_array_equal(embeddings(one, texts), embeddings(both, texts))


def test_a_message_names_words(pipeline):
    known = with_words(pipeline, {"<zib>": V})
    assert known.tokenizer.decode(known.tokenizer.encode("red <zib> bar")) == "red <zib> <zib>_1 bar"
