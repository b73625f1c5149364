"""A pipeline with what the options --embedding and --lora name, for as long as it samples."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from minidiff.formats.pipeline import TextPipeline
from minidiff.sampling.embeddings import with_embeddings
from minidiff.sampling.loras import merged_loras, open_loras


@contextmanager
def adapted(pipeline: TextPipeline, loras: Iterable[str], embeddings: Iterable[str | Path]) -> Iterator[TextPipeline]:
    """Within a block, the pipeline with the words in files of textual inversion, and with LoRAs in its weights.

    loras: each "PATH" or "PATH:WEIGHT". Raises MinidiffError as `open_loras` and `with_embeddings` do.
    """
    pipeline = with_embeddings(pipeline, embeddings)
    with merged_loras(pipeline, open_loras(pipeline, loras)):
        yield pipeline
