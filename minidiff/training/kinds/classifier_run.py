"""Runs of a classifier of noisy images, for classifier guidance.

RUN/classifier                   the averaged weights, with the names of the classes
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL.Image import Image

from minidiff.data.batches import batch, evenly_spaced
from minidiff.data.captioned_sheet import captioned_sheet
from minidiff.data.dataset import Dataset, slices
from minidiff.data.imaging import to_float, to_uint8
from minidiff.diffusion.forward import q_sample
from minidiff.engine.losses import cross_entropy
from minidiff.engine.nn import Parameter
from minidiff.engine.rng import InitRng
from minidiff.engine.tensor import Tensor, no_grad
from minidiff.formats.networks import save_network
from minidiff.models.classifier import WIDTHS, NoisyClassifier
from minidiff.models.config import ClassifierConfig
from minidiff.training.config import TrainConfig
from minidiff.training.recipes import SCHEDULE
from minidiff.training.run import Run, Weights
from minidiff.training.step import StepStats, gradient_step, make_optimizer

SHEET_IMAGES, SHEET_LEVELS = 4, 6  # images on a sheet, each at so many noise levels


@dataclass(frozen=True, kw_only=True)
class ClassifierRun(Run):
    """A classifier of noisy images in training, by cross-entropy (Dhariwal & Nichol 2021, section 4)."""

    NAME: ClassVar[str] = "classifier"

    classifier: NoisyClassifier

    @classmethod
    def build(cls, folder: Path, config: TrainConfig, *parts: Any, rng: InitRng) -> Self:
        """parts: the network's configuration."""
        (network,) = parts
        classifier = NoisyClassifier(network, rng, config.backend)
        optimizer = make_optimizer(classifier.named_parameters(), config)
        return cls(folder=folder, config=config, optimizer=optimizer, classifier=classifier)

    @classmethod
    def parts_of(cls, folder: Path, config: TrainConfig, metadata: Mapping[str, str]) -> tuple[ClassifierConfig]:
        return (ClassifierConfig.of(json.loads(metadata["classifier"])),)

    def metadata(self) -> dict[str, str]:
        return {"classifier": json.dumps(self.classifier.config.to_dict())}

    @property
    def widths(self) -> tuple[int, ...]:
        return WIDTHS

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.classifier.config.image_shape

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        return self.classifier.named_parameters()

    def batches(self, dataset: Dataset) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
        """Images and their labels."""
        config = self.config
        return lambda step: batch(dataset, step, config.batch_size, config.seed, config.flip, config.pad_crop)

    def train_batch(self, batch: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> StepStats:
        x0, labels = batch
        loss_of = self._loss(x0, labels, rng)
        return gradient_step(self.optimizer, len(x0), self.config.accumulate, loss_of)

    def validation_loss(self, dataset: Dataset, index: np.ndarray, rng: np.random.Generator) -> float:
        """The cross-entropy, over noise levels as in training."""
        n, loss_of = len(index), self._loss(to_float(dataset.take(index)), dataset.labels[index], rng)
        parts = slices(n, self.config.batch_size // self.config.accumulate)
        return sum(float(loss_of(part).numpy()) * (part.stop - part.start) for part in parts) / n

    def _loss(self, x0: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Callable[[slice], Tensor]:
        """The cross-entropy of a part of images x0, with noise; rng draws t, then eps, of all."""
        t, eps = SCHEDULE.sample_t(rng, len(x0)), rng.standard_normal(x0.shape, dtype=np.float32)
        x_t, alpha_bar = q_sample(SCHEDULE, x0, t, eps), SCHEDULE.alpha_bar(t)
        return lambda part: cross_entropy(self.classifier(x_t[part], alpha_bar[part]), labels[part])

    def describe_validation(self, loss: float) -> str:
        return f"cross-entropy of the averaged weights on fixed noisy images {loss:.4f}"

    def sheet(self, train_set: Dataset, held_out: Dataset) -> Image:
        """Images of the held-out set at rising noise levels, each above the class that is found most probable."""
        index = evenly_spaced(len(held_out), SHEET_IMAGES)
        t = np.tile(np.linspace(0, len(SCHEDULE) - 1, SHEET_LEVELS, dtype=int), len(index))
        x0 = to_float(held_out.take(index.repeat(SHEET_LEVELS)))  # (N, H, W, C)
        eps = np.random.default_rng([self.config.seed, 0]).standard_normal(x0.shape, dtype=np.float32)
        x_t = q_sample(SCHEDULE, x0, t, eps)
        with no_grad():
            logits = self.classifier(x_t, SCHEDULE.alpha_bar(t)).numpy().astype(np.float64)  # (N, K)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        captions = [f"{self.config.classes[row.argmax()]} {row.max():.0%}" for row in p]
        return captioned_sheet(to_uint8(x_t), captions, SHEET_LEVELS)

    def export(self, folder: Path, weights: Weights) -> None:
        save_network(folder / "classifier", self.classifier.config.to_dict(), weights)
