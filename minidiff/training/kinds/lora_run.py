"""Runs of a LoRA: low-rank updates of a text-conditional pipeline.

RUN/pytorch_lora_weights.safetensors   the averaged updates in float16, which diffusers' load_lora_weights opens
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from minidiff.data.batches import batch, batch_indices
from minidiff.data.dataset import Dataset
from minidiff.diffusion.forward import q_sample, x0_and_eps
from minidiff.engine.nn import Parameter
from minidiff.engine.rng import InitRng
from minidiff.engine.tensor import no_grad
from minidiff.formats.lora_files import LORA_WEIGHTS, save_lora
from minidiff.models.lora import PROJECTIONS, LoRALayer, Update, add_updates, without_updates
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.frozen_pipeline_run import FrozenPipelineRun, pipeline_digest
from minidiff.training.prior import Batch, random_texts, words_of
from minidiff.training.run import Weights
from minidiff.training.step import StepStats, Teacher, make_optimizer

WORDS = 7  # last word of the generator's seed of random texts; data/batches.py and others use smaller ones


@dataclass(frozen=True, kw_only=True)
class LoRARun(FrozenPipelineRun):
    """Updates of attention projections of a pipeline's U-Net and text encoder in training.

    With config.own_prior, prior preservation needs no images (`batches`, `teacher`).


    layers  the layers with updates, by name
    """

    NAME: ClassVar[str] = "LoRA"

    layers: Mapping[str, LoRALayer]

    @classmethod
    def build(cls, folder: Path, config: TrainConfig, *parts: Any, rng: InitRng) -> Self:
        """parts: the pipeline, whose networks get layers with updates."""
        (pipeline,) = parts
        base, named = pipeline_digest(pipeline), PROJECTIONS[config.projections]
        layers = {
            f"{part}.{name}": layer
            for part in ("unet", "text_encoder")
            for name, layer in add_updates(getattr(pipeline, part), config.rank, config.rank, rng, named).items()
        }
        optimizer = make_optimizer(_parameters(layers), config)
        return cls(
            folder=folder, config=config, optimizer=optimizer, pipeline=pipeline, frozen={}, base=base, layers=layers
        )

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        return _parameters(self.layers)

    def batches(self, dataset: Dataset) -> Callable[[int], Batch]:
        """With config.own_prior: the images with their captions, then the same images with texts of random words.

        Captions are not replaced by the empty text then, so that the unconditional prediction stays as it was: some of
        the random texts are empty.
        """
        if not self.config.own_prior:
            return super().batches(dataset)
        config, tokenizer = self.config, self.pipeline.tokenizer
        ids, words = tokenizer(list(dataset.captions)), words_of(tokenizer)

        def make_batch(step: int) -> Batch:
            x0, _ = batch(dataset, step, config.batch_size, config.seed, config.flip, config.pad_crop)
            captions = ids[batch_indices(len(dataset), step, config.batch_size, config.seed)]  # (B, T)
            rng = np.random.default_rng([config.seed, step, WORDS])
            texts = tokenizer(random_texts(words, len(x0), config.label_dropout, rng))  # (B, T)
            return np.concatenate([x0, x0]), np.concatenate([captions, texts])  # (2 B, H, W, C), (2 B, T)

        return make_batch

    def train_batch(self, batch: Batch, rng: np.random.Generator, teach: Teacher | None = None) -> StepStats:
        return super().train_batch(batch, rng, self.teacher if self.config.own_prior else teach)

    def teacher(self, x0: np.ndarray, t: np.ndarray, eps: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x0 and eps (2 B, h, w, C), the second half replaced by the estimates of the model without updates.

        x_t stays the same, and the target of that half is the prediction of the model as it was.
        """
        half = slice(len(x0) // 2, None)
        x_t = q_sample(self.pipeline.schedule, x0[half], t[half], eps[half])
        with no_grad(), without_updates(self.layers.values()):
            prediction = self.model(x_t, t[half], ids[half]).numpy()
        x0_hat, eps_hat = x0_and_eps(self.pipeline.schedule, prediction, x_t, t[half])
        return np.concatenate([x0[: len(x0) // 2], x0_hat]), np.concatenate([eps[: len(x0) // 2], eps_hat])

    def export(self, folder: Path, weights: Weights) -> None:
        rank = self.config.rank
        updates = {name: Update(weights[f"{name}.A"], weights[f"{name}.B"], rank) for name in self.layers}
        save_lora(folder / LORA_WEIGHTS, updates, half=True)


def _parameters(layers: Mapping[str, LoRALayer]) -> Iterator[tuple[str, Parameter]]:
    """The trained parameters of layers with updates, by name."""
    for name, layer in layers.items():
        yield from ((f"{name}.A", layer.A), (f"{name}.B", layer.B))
