"""Words of textual inversion for sampling: a pipeline that knows them besides its own; its folder is not touched."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from minidiff.errors import MinidiffError
from minidiff.formats.embedding_files import load_embedding
from minidiff.formats.pipeline import TextPipeline
from minidiff.models.textual_inversion import rows, with_vectors


def with_words(pipeline: TextPipeline, words: Mapping[str, np.ndarray]) -> TextPipeline:
    """A pipeline that knows these words too, each by its vectors (V, D); all else is shared with the one given.

    A word of several vectors takes as many tokens of a prompt.
    """
    if not words:
        return pipeline
    first, ids = rows(pipeline.text_encoder.embeddings.token_embedding), {}
    for word, vectors in words.items():
        ids[word] = range(first, first + len(vectors))
        first += len(vectors)
    encoder = with_vectors(pipeline.text_encoder, np.concatenate(list(words.values())))
    return replace(pipeline, tokenizer=pipeline.tokenizer.with_words(ids), text_encoder=encoder)


def with_embeddings(pipeline: TextPipeline, paths: Iterable[str | Path]) -> TextPipeline:
    """A pipeline that knows the words in these files of textual inversion (`load_embedding`).

    Raises MinidiffError as `load_embedding` does, and for two files of one word.
    """
    words: dict[str, np.ndarray] = {}
    for path in paths:
        word, vectors = load_embedding(path, pipeline)
        if word.lower() in map(str.lower, words):
            raise MinidiffError(f"{path}: {word} is the word of another file too; leave one out, or rename it")
        words[word] = vectors
    return with_words(pipeline, words)
