"""Runs of textual inversion: the embedding of a new word for a text-conditional pipeline.

RUN/learned_embeds.safetensors   the averaged vectors, which diffusers' load_textual_inversion opens
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from minidiff.engine.nn import Parameter
from minidiff.engine.rng import InitRng
from minidiff.errors import MinidiffError
from minidiff.formats.embedding_files import LEARNED_EMBEDS, MOST_VECTORS, check_word, save_embedding
from minidiff.formats.pipeline import TextPipeline
from minidiff.models.textual_inversion import WordEmbedding
from minidiff.sampling.embeddings import with_words
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.frozen_pipeline_run import FrozenPipelineRun, pipeline_digest
from minidiff.training.run import Weights
from minidiff.training.step import make_optimizer


@dataclass(frozen=True, kw_only=True)
class TextualInversionRun(FrozenPipelineRun):
    """The vectors of a pipeline's new word in training.

    vectors  (V, D)
    """

    NAME: ClassVar[str] = "textual inversion"

    vectors: Parameter

    @classmethod
    def build(cls, folder: Path, config: TrainConfig, *parts: Any, rng: InitRng) -> Self:
        """parts: the pipeline. The vectors start as the embeddings of config.initial_word's tokens, whatever rng."""
        (pipeline,) = parts
        base = pipeline_digest(pipeline)
        check_word(pipeline.tokenizer, config.word, "--word")
        for network in (pipeline.unet, pipeline.text_encoder):
            for p in network.parameters():
                p.requires_grad = False
        pipeline = with_words(pipeline, {config.word: initial_vectors(pipeline, config.initial_word)})
        embedding = pipeline.text_encoder.embeddings.token_embedding
        assert isinstance(embedding, WordEmbedding)
        vectors = embedding.vectors
        optimizer = make_optimizer([("vectors", vectors)], config)
        return cls(
            folder=folder, config=config, optimizer=optimizer, pipeline=pipeline, frozen={}, base=base, vectors=vectors
        )

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        yield "vectors", self.vectors

    def export(self, folder: Path, weights: Weights) -> None:
        save_embedding(folder / LEARNED_EMBEDS, self.config.word, weights["vectors"])


def initial_vectors(pipeline: TextPipeline, text: str) -> np.ndarray:
    """The embeddings (V, D) of a text's tokens. Raises MinidiffError if there are none, or more than MOST_VECTORS."""
    ids = pipeline.tokenizer.encode(text)
    if not 1 <= len(ids) <= MOST_VECTORS:
        raise MinidiffError(f"--initial-word {text!r:.80}: has {len(ids)} tokens; give 1 to {MOST_VECTORS}")
    table = pipeline.text_encoder.embeddings.token_embedding.weight.numpy()  # (K, D)
    return np.asarray(table[ids], np.float32)  # (V, D)
