"""Runs of a text-conditional U-Net on captioned images, or on their latents.

RUN/tokenizer, RUN/text_encoder, RUN/unet, RUN/vae, RUN/scheduler, RUN/model_index.json
    a Stable Diffusion folder with the averaged weights; without vae/ if it diffuses pixels

The frozen parts (tokenizer, autoencoder, a text encoder that was trained elsewhere) are copied into the folder before
the first step and read from there when the run is opened.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL.Image import Image

from minidiff.data.batches import batch, batch_indices, drop_labels, evenly_spaced
from minidiff.data.captioned_sheet import captioned_sheet
from minidiff.data.dataset import Dataset, slices
from minidiff.data.imaging import to_float, to_uint8
from minidiff.diffusion.sampler import LOG_SIGMA
from minidiff.engine.nn import Parameter
from minidiff.engine.rng import InitRng, Rng
from minidiff.engine.tensor import Tensor, no_grad
from minidiff.formats.pipeline import TextPipeline
from minidiff.formats.run_networks import build_pipeline, digests, text_parts, trained_parameters
from minidiff.formats.schedulers import schedule_to_config
from minidiff.formats.stable_diffusion import save_parts
from minidiff.sampling.prompts import escaped
from minidiff.sampling.text_to_image import encode, text_to_image
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.consistency import consistency_error, consistency_step
from minidiff.training.kinds.unet_run import FEW_STEPS, noise_loss
from minidiff.training.prior import Batch, image_weights, open_prior, with_prior
from minidiff.training.run import Run, Weights
from minidiff.training.step import StepStats, Teacher, make_optimizer, train_step

SHEET_IMAGES, SHEET_STEPS = 16, 25  # of a sheet of samples: images, sampling steps
SHEET_GUIDANCE = 4.0  # guidance scale


@dataclass(frozen=True, kw_only=True)
class TextRun(Run):
    """A text-conditional U-Net in training, with its text encoder unless that is frozen.

    pipeline  all parts, with the current weights
    frozen    name -> SHA-256 of the frozen parts, checked when the run is opened
    """

    NAME: ClassVar[str] = "text U-Net"

    pipeline: TextPipeline
    frozen: Mapping[str, str]

    @classmethod
    def build(cls, folder: Path, config: TrainConfig, *parts: Any, rng: InitRng) -> Self:
        """parts: the U-Net's configuration, schedule, tokenizer, autoencoder or Pixels, and text encoder: the
        configuration of one to train, or a frozen one.
        """
        _, _, tokenizer, vae, text_encoder = parts
        frozen = digests(tokenizer, vae, text_encoder)
        pipeline = build_pipeline(*parts, rng=rng, backend=config.backend)
        if config.consistency:
            pipeline = replace(pipeline, sampler=replace(pipeline.sampler, name="consistency", spacing=LOG_SIGMA))
        optimizer = make_optimizer(trained_parameters(pipeline, frozen), config)
        return cls(folder=folder, config=config, optimizer=optimizer, pipeline=pipeline, frozen=frozen)

    @classmethod
    def parts_of(cls, folder: Path, config: TrainConfig, metadata: Mapping[str, str]) -> tuple[Any, ...]:
        return text_parts(folder, metadata, config.backend)

    def metadata(self) -> dict[str, str]:
        return {
            "unet": json.dumps(self.pipeline.unet.config.to_dict()),
            "text_encoder": json.dumps(self.pipeline.text_encoder.config.to_dict()),
            "schedule": json.dumps(schedule_to_config(self.pipeline.schedule)),
            "frozen": json.dumps(self.frozen),
        }

    @property
    def objective(self) -> str:
        return self.pipeline.schedule.prediction_type

    @property
    def widths(self) -> tuple[int, ...]:
        return self.pipeline.unet.config.block_out_channels

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.pipeline.image_shape

    def model(self, x_t: Any, t: np.ndarray, cond: np.ndarray, rng: Rng | None = None) -> Tensor:
        """Text encoder and U-Net as one model: the prediction at x_t (N, h, w, C), t (N,) and token ids cond (N, T)."""
        with no_grad() if "text_encoder" in self.frozen else nullcontext():
            text = self.pipeline.text_encoder(cond)
        return self.pipeline.unet(x_t, t, text, rng)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        return trained_parameters(self.pipeline, self.frozen)

    def batches(self, dataset: Dataset) -> Callable[[int], Batch]:
        """Images and the token ids of their captions, some replaced by the empty text's; the prior's too (prior.py)."""
        if self.config.prior_weight is None:
            return self._batches_of(dataset)
        return with_prior(self._batches_of(dataset), self._batches_of(open_prior(self.folder, self.shape)))

    def _batches_of(self, dataset: Dataset) -> Callable[[int], Batch]:
        config, tokenizer = self.config, self.pipeline.tokenizer
        ids, (empty,) = tokenizer(list(dataset.captions)), tokenizer([""])  # (N, T), (T,)

        def make_batch(step: int) -> Batch:
            x0, _ = batch(dataset, step, config.batch_size, config.seed, config.flip, config.pad_crop)
            texts = ids[batch_indices(len(dataset), step, config.batch_size, config.seed)]  # (B, T)
            return x0, drop_labels(texts, empty, config.label_dropout, config.seed, step)

        return make_batch

    def train_batch(self, batch: Batch, rng: np.random.Generator, teach: Teacher | None = None) -> StepStats:
        """One optimiser step on a batch; teach as of `train_step`."""
        (x0, ids), config, schedule = batch, self.config, self.pipeline.schedule
        latents = self._latents(x0, rng)
        if config.consistency:
            return consistency_step(self.model, schedule, self.optimizer, latents, rng, ids, config)
        weights = None if config.prior_weight is None else image_weights(len(x0), config.prior_weight)
        return train_step(
            self.model, schedule, self.optimizer, latents, rng, ids, config.min_snr, config.accumulate,
            image_weights=weights, teach=teach, stratified=config.stratified,
        )  # fmt: skip

    def validation_loss(self, dataset: Dataset, index: np.ndarray, rng: np.random.Generator) -> float:
        """The training loss (`noise_loss`), each image with its caption; of consistency tuning its last stage's."""
        ids = self.pipeline.tokenizer([dataset.captions[i] for i in index])
        latents = self._latents(to_float(dataset.take(index)), rng)
        loss = consistency_error if self.config.consistency else noise_loss
        return loss(self.model, self.pipeline.schedule, latents, ids, rng, self.config)

    def _latents(self, x0: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Scaled latents of images x0 (N, H, W, C), drawn from the encoder's distribution; encoded part by part."""
        size = self.config.batch_size // self.config.accumulate
        parts = slices(len(x0), size)
        return np.concatenate([encode(self.pipeline, x0[part], rng) for part in parts])  # (N, h, w, latent_channels)

    def sheet(self, train_set: Dataset, held_out: Dataset) -> Image:
        """Samples for captions, half of the training set and half held out, with the captions."""
        prompts = [
            texts[i]
            for texts in (train_set.captions, held_out.captions)
            for i in evenly_spaced(len(texts), SHEET_IMAGES // 2)
        ]
        return self.samples_of(prompts)

    def samples_of(self, prompts: list[str]) -> Image:
        """A sample for each prompt, with the prompts; the noise depends on the run's seed alone."""
        rng = np.random.default_rng([self.config.seed, 0])
        guidance, steps = (1.0, FEW_STEPS) if self.config.consistency else (SHEET_GUIDANCE, SHEET_STEPS)
        images = text_to_image(self.pipeline, list(map(escaped, prompts)), guidance=guidance, steps=steps, rng=rng)
        return captioned_sheet(to_uint8(images), prompts)

    def prepare(self) -> None:
        save_parts(self.folder, self.pipeline, self.frozen)

    def export(self, folder: Path, weights: Weights) -> None:
        averaged: dict[str, dict[str, np.ndarray]] = {}
        for name, a in weights.items():
            part, _, inner = name.partition(".")
            averaged.setdefault(part, {})[inner] = a
        others = () if folder == self.folder else self.frozen  # its own folder has the frozen parts already
        save_parts(folder, self.pipeline, [*averaged, *others], averaged)
