"""A pipeline with what --lora and --embedding name: LoRAs are merged into its weights for as long as it samples."""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from minidiff.errors import MinidiffError
from minidiff.formats.lora_files import LoRA, load_lora, pipeline_layers
from minidiff.formats.pipeline import TextPipeline
from minidiff.models.lora import merged
from minidiff.sampling.embeddings import with_embeddings


@contextmanager
def adapted(pipeline: TextPipeline, loras: Iterable[str], embeddings: Iterable[str | Path]) -> Iterator[TextPipeline]:
    """Within a block, the pipeline with the words in files of textual inversion, and with LoRAs in its weights.

    Raises MinidiffError as `open_loras` and `with_embeddings` do.
    """
    pipeline = with_embeddings(pipeline, embeddings)
    with merged_loras(pipeline, open_loras(pipeline, loras)):
        yield pipeline


def open_loras(pipeline: TextPipeline, given: Iterable[str]) -> list[tuple[LoRA, float]]:
    """The LoRA and the weight of each "PATH" or "PATH:WEIGHT"; without a weight, 1.

    Raises MinidiffError for an empty path, for a weight that is not finite, and as `load_lora` does.
    """
    return [(load_lora(path, pipeline), weight) for path, weight in map(_path_and_weight, given)]


def merged_loras(pipeline: TextPipeline, loras: Iterable[tuple[LoRA, float]]) -> AbstractContextManager[None]:
    """Within a block, `with md.merged_loras(pipeline, loras):`, the pipeline's weights include LoRAs.

    loras: pairs of updates and their weight, which scales them: 1 as they were trained, 0 not at all.
    After the block the weights are bit for bit the pipeline's own.
    """
    return merged(pipeline_layers(pipeline), loras)


def _path_and_weight(text: str) -> tuple[str, float]:
    path, colon, number = text.rpartition(":")
    if not text or (colon and not path):  # pathlib reads "" as "."
        raise MinidiffError(f"--lora {text!r:.80}: has no path; give a LoRA's folder or file")
    if not colon or os.path.exists(text):
        return text, 1.0
    try:
        weight = float(number)
    except ValueError:  # the colon is part of the path
        return text, 1.0
    if not math.isfinite(weight):
        raise MinidiffError(f"--lora {text}: the weight must be finite; give a number such as 0.8")
    return path, weight
