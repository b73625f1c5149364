"""Textual inversion: a new word for a text encoder, by one learned embedding (Gal et al. 2022, arXiv:2208.01618).

Text encoder and U-Net stay as they are. Trained is the vector v that stands at the word's position, or a few of them,

    v* = argmin E[|eps_hat(x_t, c(y)) - eps|^2]        (eq. 2)        v (V, D), y: captions with the word in them

so that the result is a few hundred numbers. v starts as the embedding of a word that is close in meaning.
"""

import copy

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine.nn import Embedding, Module, Parameter
from minidiff.engine.tensor import Tensor
from minidiff.models.text_encoder import TextEncoder


class WordEmbedding(Module):
    """A token embedding with further rows: row K + i is vectors[i], those below K are the table's own.

    table    with K rows of D values, not trained
    vectors  (V, D)
    """

    def __init__(self, table: "Embedding | WordEmbedding", vectors: np.ndarray):
        self.table: Embedding | WordEmbedding = table
        self.vectors: Parameter = Parameter(vectors, table.backend)

    def __call__(self, index: np.ndarray) -> Tensor:
        K = rows(self.table)
        added = index >= K
        own = self.table(np.where(added, 0, index))  # (N, D)
        learned = F.embedding(self.vectors, np.where(added, index - K, 0))  # (N, D)
        of_words, of_table = (Tensor(np.float32(mask[:, None]), self.backend) for mask in (added, ~added))  # (N, 1)
        return F.add(F.mul(own, of_table), F.mul(learned, of_words))


def rows(embedding: Embedding | WordEmbedding) -> int:
    """K of an embedding's rows 0 ... K - 1."""
    if isinstance(embedding, WordEmbedding):
        return rows(embedding.table) + len(embedding.vectors.data)
    return len(embedding.weight.data)


def with_vectors(text_encoder: TextEncoder, vectors: np.ndarray) -> TextEncoder:
    """A text encoder whose token embedding has these rows (V, D) too; all else is shared with the one that is given."""
    encoder, embeddings = copy.copy(text_encoder), copy.copy(text_encoder.embeddings)
    word_embedding = WordEmbedding(embeddings.token_embedding, vectors)
    embeddings.token_embedding = word_embedding  # pyright: ignore[reportAttributeAccessIssue]
    encoder.embeddings = embeddings
    return encoder
