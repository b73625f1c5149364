"""Runs of a LoRA: low-rank updates of a text-conditional pipeline, whose own weights stay as they are.

RUN/pytorch_lora_weights.safetensors   the averaged updates, which diffusers' load_lora_weights opens

The pipeline is read from its folder when the run is opened, and must be the one that the run was started with.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Self

from PIL.Image import Image

from minidiff.data.batches import evenly_spaced
from minidiff.data.dataset import Dataset
from minidiff.engine.nn import Parameter
from minidiff.engine.rng import InitRng
from minidiff.errors import MinidiffError
from minidiff.formats.lora_files import LORA_WEIGHTS, save_lora
from minidiff.formats.pipeline import TextPipeline
from minidiff.formats.run_networks import digests, weights_digest
from minidiff.formats.run_state import DamagedPart
from minidiff.models.lora import LoRALayer, Update, add_updates
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import with_prompts
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.text_run import TextRun
from minidiff.training.run import Weights
from minidiff.training.step import make_optimizer

SHEET_PROMPTS = 4


@dataclass(frozen=True, kw_only=True)
class LoRARun(TextRun):
    """Updates of the attention projections of a pipeline's U-Net and text encoder in training.

    base    SHA-256 of the pipeline, checked when the run is opened
    layers  the layers with updates, by name
    """

    NAME: ClassVar[str] = "LoRA"

    base: str
    layers: Mapping[str, LoRALayer]

    @classmethod
    def build(cls, folder: Path, config: TrainConfig, *parts: Any, rng: InitRng) -> Self:
        """parts: the pipeline, whose networks get layers with updates."""
        (pipeline,) = parts
        base = pipeline_digest(pipeline)
        layers = {
            f"{part}.{name}": layer
            for part in ("unet", "text_encoder")
            for name, layer in add_updates(getattr(pipeline, part), config.rank, config.rank, rng).items()
        }
        optimizer = make_optimizer([p for _, p in _parameters(layers)], config)
        return cls(
            folder=folder, config=config, optimizer=optimizer, pipeline=pipeline, frozen={}, base=base, layers=layers
        )

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

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        return _parameters(self.layers)

    def sheet(self, train_set: Dataset, held_out: Dataset) -> Image:
        """Samples for captions of the training set, with the captions."""
        prompts = [train_set.captions[i] for i in evenly_spaced(len(train_set), SHEET_PROMPTS)]
        return self.samples_of(prompts)

    def prepare(self) -> None:
        """Nothing: the pipeline stays where it is."""

    def export(self, folder: Path, weights: Weights) -> None:
        rank = self.config.rank
        updates = {name: Update(weights[f"{name}.A"], weights[f"{name}.B"], rank) for name in self.layers}
        save_lora(folder / LORA_WEIGHTS, updates)


def _parameters(layers: Mapping[str, LoRALayer]) -> Iterator[tuple[str, Parameter]]:
    """The trained parameters of layers with updates, by name."""
    for name, layer in layers.items():
        yield from ((f"{name}.A", layer.A), (f"{name}.B", layer.B))


def pipeline_digest(pipeline: TextPipeline) -> str:
    """SHA-256 of the tokenizer and all weights of a pipeline."""
    parts = digests(pipeline.tokenizer, pipeline.vae, pipeline.text_encoder) | {"unet": weights_digest(pipeline.unet)}
    return sha256(json.dumps(parts).encode()).hexdigest()
