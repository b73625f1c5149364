"""Runs of a LoRA: low-rank updates of a text-conditional pipeline.

RUN/pytorch_lora_weights.safetensors   the averaged updates, which diffusers' load_lora_weights opens
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from minidiff.engine.nn import Parameter
from minidiff.engine.rng import InitRng
from minidiff.formats.lora_files import LORA_WEIGHTS, save_lora
from minidiff.models.lora import LoRALayer, Update, add_updates
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.frozen_pipeline_run import FrozenPipelineRun, pipeline_digest
from minidiff.training.run import Weights
from minidiff.training.step import make_optimizer


@dataclass(frozen=True, kw_only=True)
class LoRARun(FrozenPipelineRun):
    """Updates of the attention projections of a pipeline's U-Net and text encoder in training.

    layers  the layers with updates, by name
    """

    NAME: ClassVar[str] = "LoRA"

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

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        return _parameters(self.layers)

    def export(self, folder: Path, weights: Weights) -> None:
        rank = self.config.rank
        updates = {name: Update(weights[f"{name}.A"], weights[f"{name}.B"], rank) for name in self.layers}
        save_lora(folder / LORA_WEIGHTS, updates)


def _parameters(layers: Mapping[str, LoRALayer]) -> Iterator[tuple[str, Parameter]]:
    """The trained parameters of layers with updates, by name."""
    for name, layer in layers.items():
        yield from ((f"{name}.A", layer.A), (f"{name}.B", layer.B))
