"""Runs that train something for a text-conditional pipeline, which stays as it is: LoRA and textual inversion.

The pipeline is read from its folder when the run is opened, and must be the one that the run was started with.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from PIL.Image import Image

from minidiff.data.batches import evenly_spaced
from minidiff.data.dataset import Dataset
from minidiff.errors import MinidiffError
from minidiff.formats.pipeline import TextPipeline
from minidiff.formats.run_networks import digests, weights_digest
from minidiff.formats.run_state import DamagedPart
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import with_prompts
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.text_run import TextRun

SHEET_PROMPTS = 4


@dataclass(frozen=True, kw_only=True)
class FrozenPipelineRun(TextRun):
    """A run for a pipeline whose own weights are frozen.

    base  SHA-256 of the pipeline, checked when the run is opened
    """

    base: str

    @classmethod
    def parts_of(cls, folder: Path, config: TrainConfig, metadata: Mapping[str, str]) -> tuple[TextPipeline]:
        path = Path(metadata["path"])
        try:
            pipeline = with_prompts(open_pipeline(path, config.backend, kind="text"))
        except MinidiffError as error:
            raise DamagedPart(f"{folder}: its pipeline cannot be opened: {error}") from None
        if pipeline_digest(pipeline) != metadata["base"]:
            raise DamagedPart(f"{path}: is not the pipeline that {folder} was started with; put that back")
        return (pipeline,)

    def metadata(self) -> dict[str, str]:
        return {"path": str(self.pipeline.folder.absolute()), "base": self.base}

    def sheet(self, train_set: Dataset, held_out: Dataset) -> Image:
        """Samples for captions of the training set, with the captions."""
        prompts = [train_set.captions[i] for i in evenly_spaced(len(train_set), SHEET_PROMPTS)]
        return self.samples_of(prompts)

    def prepare(self) -> None:
        """Nothing: the pipeline stays where it is."""


def pipeline_digest(pipeline: TextPipeline) -> str:
    """SHA-256 of the tokenizer and all weights of a pipeline."""
    parts = digests(pipeline.tokenizer, pipeline.vae, pipeline.text_encoder) | {"unet": weights_digest(pipeline.unet)}
    return sha256(json.dumps(parts).encode()).hexdigest()
