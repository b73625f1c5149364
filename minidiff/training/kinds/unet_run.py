"""Runs of a U-Net on images, unconditional or class-conditional.

RUN/unet, RUN/scheduler, RUN/model_index.json      the averaged weights as a diffusers pipeline
RUN/classes.json                 in place of model_index.json if it is class-conditional
"""

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL.Image import Image

from minidiff.data.batches import batch, drop_labels
from minidiff.data.dataset import Dataset, slices
from minidiff.data.imaging import sheet, to_float, to_uint8
from minidiff.diffusion.loss import loss_history, min_snr_weight, training_loss
from minidiff.diffusion.model import Model, as_model
from minidiff.diffusion.reverse import last_x_t, sample
from minidiff.diffusion.sampler import CONSISTENCY_SAMPLER, Sampler
from minidiff.diffusion.schedule import AnySchedule
from minidiff.engine.nn import Parameter
from minidiff.engine.rng import InitRng
from minidiff.formats.networks import save_pipeline, save_unet
from minidiff.formats.run_networks import unet_parts
from minidiff.formats.schedulers import schedule_to_config
from minidiff.models.config import UNetConfig
from minidiff.models.mlp import MLP
from minidiff.models.unet import UNet
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.consistency import consistency_error, consistency_step
from minidiff.training.run import Run, Weights
from minidiff.training.step import StepStats, make_optimizer, train_step

SHEET_IMAGES, SHEET_STEPS = 36, 25  # of a sheet of samples: images, DDIM steps
FEW_STEPS = 2  # of one of a consistency model


@dataclass(frozen=True, kw_only=True)
class DenoiserRun(Run):
    """A network of x_t, t and class labels in training, by DDPM algorithm 1: the U-Net, or the MLP of points_run.py."""

    schedule: AnySchedule

    @property
    @abstractmethod
    def network(self) -> UNet | MLP:
        """The network in training."""

    @property
    def objective(self) -> str:
        return self.schedule.prediction_type

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.network.image_shape

    @property
    def model(self) -> Model:
        """The network as a function of x_t and t."""
        return as_model(self.network, self.schedule)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        return self.network.named_parameters()

    def batches(self, dataset: Dataset) -> Callable[[int], tuple[np.ndarray, np.ndarray | None]]:
        """x0, and labels if it is class-conditional, some of which are dropped."""
        config = self.config

        def make_batch(step: int) -> tuple[np.ndarray, np.ndarray | None]:
            x0, labels = batch(dataset, step, config.batch_size, config.seed, config.flip, config.pad_crop)
            if not config.classes:
                return x0, None
            return x0, drop_labels(labels, len(config.classes), config.label_dropout, config.seed, step)

        return make_batch

    def train_batch(self, batch: tuple[np.ndarray, np.ndarray | None], rng: np.random.Generator) -> StepStats:
        (x0, cond), config = batch, self.config
        return train_step(
            self.model, self.schedule, self.optimizer, x0, rng, cond, config.min_snr, config.accumulate,
            stratified=config.stratified,
        )  # fmt: skip

    def validation_loss(self, dataset: Dataset, index: np.ndarray, rng: np.random.Generator) -> float:
        """The training loss (`noise_loss`)."""
        labels = dataset.labels[index] if self.config.classes else None
        return noise_loss(self.model, self.schedule, to_float(dataset.take(index)), labels, rng, self.config)


@dataclass(frozen=True, kw_only=True)
class UNetRun(DenoiserRun):
    """A U-Net in training.

    losses  with importance sampling of t, its history (`loss_history`)
    """

    NAME: ClassVar[str] = "U-Net"

    unet: UNet
    losses: np.ndarray | None = None

    @classmethod
    def build(cls, folder: Path, config: TrainConfig, *parts: Any, rng: InitRng) -> Self:
        """parts: the network's configuration, and the schedule."""
        network, schedule = parts
        unet = UNet(network, rng, config.backend)
        optimizer = make_optimizer(unet.named_parameters(), config)
        losses = loss_history(schedule) if config.importance_sampling else None
        return cls(folder=folder, config=config, optimizer=optimizer, unet=unet, schedule=schedule, losses=losses)

    @classmethod
    def parts_of(cls, folder: Path, config: TrainConfig, metadata: Mapping[str, str]) -> tuple[UNetConfig, AnySchedule]:
        return unet_parts(metadata)

    def metadata(self) -> dict[str, str]:
        return {
            "unet": json.dumps(self.unet.config.to_dict()),
            "schedule": json.dumps(schedule_to_config(self.schedule)),
        }

    @property
    def network(self) -> UNet:
        return self.unet

    @property
    def widths(self) -> tuple[int, ...]:
        return self.unet.config.block_out_channels

    def train_batch(self, batch: tuple[np.ndarray, np.ndarray | None], rng: np.random.Generator) -> StepStats:
        (x0, cond), config = batch, self.config
        if config.consistency:
            return consistency_step(self.model, self.schedule, self.optimizer, x0, rng, cond, config)
        return train_step(
            self.model, self.schedule, self.optimizer, x0, rng, cond, config.min_snr, config.accumulate, self.losses,
            stratified=config.stratified,
        )  # fmt: skip

    def validation_loss(self, dataset: Dataset, index: np.ndarray, rng: np.random.Generator) -> float:
        """The training loss (`noise_loss`); of consistency tuning that of its last stage."""
        if not self.config.consistency:
            return super().validation_loss(dataset, index, rng)
        x0, labels = to_float(dataset.take(index)), dataset.labels[index] if self.config.classes else None
        return consistency_error(self.model, self.schedule, x0, labels, rng, self.config)

    def arrays(self) -> dict[str, np.ndarray]:
        return {} if self.losses is None else {"losses": self.losses}

    def sheet(self, train_set: Dataset, held_out: Dataset) -> Image:
        return sheet(self.sample_images(SHEET_IMAGES, FEW_STEPS if self.config.consistency else SHEET_STEPS))

    def sample_images(self, n: int, steps: int) -> np.ndarray:
        """n samples (n, H, W, C) uint8, class after class; the noise depends on the run's seed alone.

        By DDIM, or of a consistency model by its sampler.
        """
        rng = np.random.default_rng([self.config.seed, 0])
        labels = np.arange(n) * len(self.config.classes) // n if self.config.classes else None
        shape = (n, *self.unet.image_shape)
        sampler = CONSISTENCY_SAMPLER if self.config.consistency else "ddim"
        return to_uint8(last_x_t(sample(self.model, self.schedule, shape, rng, steps, sampler, labels)))

    def export(self, folder: Path, weights: Weights) -> None:
        save_unet(self.unet, folder / "unet", dict(weights))
        sampler = Sampler("ddpm", variance="learned_range") if self.config.learned_variance else None
        sampler = CONSISTENCY_SAMPLER if self.config.consistency else sampler
        save_pipeline(folder, self.schedule, sampler, self.config.classes)


def noise_loss(
    model: Model,
    schedule: AnySchedule,
    x0: np.ndarray,
    cond: np.ndarray | None,
    rng: np.random.Generator,
    config: TrainConfig,
) -> float:
    """The training loss (DDPM eq. 14, weighted as the run's) of images x0 (n, H, W, C), without dropout.

    They pass through the network in parts of at most a training step's size, to bound memory. rng draws t, then eps.
    """
    n = len(x0)
    t, eps = schedule.sample_t(rng, n), rng.standard_normal(x0.shape, dtype=np.float32)
    weight = None if config.min_snr is None else min_snr_weight(schedule, t, config.min_snr)
    total, size = 0.0, config.batch_size // config.accumulate
    for part in slices(n, size):
        conds, weights = (None if a is None else a[part] for a in (cond, weight))
        loss = training_loss(model, schedule, x0[part], t[part], eps[part], conds, weight=weights)
        total += float(loss.numpy()) * (part.stop - part.start)
    return total / n
