"""Runs of a noise predictor that hears a text, which learns captioned pictures, or their latents.

RUN/tokenizer, RUN/text_encoder, RUN/unet, RUN/vae, RUN/scheduler, RUN/model_index.json
    a folder of Stable Diffusion's, with the averaged weights; without vae/ if it learns the pixels themselves

What does not learn, the tokenizer, the autoencoder, and a text encoder that was trained elsewhere, is copied into the
folder before the first step and read from there ever after.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL.Image import Image

from minidiff.data.batches import batch, drop_labels, numbers, spread
from minidiff.data.captioned import captioned
from minidiff.data.dataset import Dataset
from minidiff.data.pictures import to_float, to_uint8
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import schedule_from_config, schedule_to_config
from minidiff.engine.nn import Module, Parameter
from minidiff.engine.tensor import Tensor, no_grad
from minidiff.errors import MinidiffError
from minidiff.models.latent_config import TextEncoderConfig, TextUNetConfig
from minidiff.models.text_encoder import TextEncoder
from minidiff.models.text_unet import TextUNet
from minidiff.models.tokenizer import Tokenizer
from minidiff.models.vae import VAE, Pixels
from minidiff.runs.pipeline import Pipeline, load_text_encoder, load_vae, save_parts
from minidiff.runs.run import DamagedPart, Run, Weights
from minidiff.runs.text import encoded, native_size, text_to_image
from minidiff.runs.tokens import load_tokenizer
from minidiff.runs.train import StepStats, TrainConfig, make_optimizer, train_step
from minidiff.runs.unet_run import noise_loss

PREVIEW = 16  # pictures on a sheet
GUIDANCE, WALK = 4.0, 25  # how much they insist, and the steps that they take


@dataclass(frozen=True, kw_only=True)
class TextRun(Run):
    """A noise predictor in training, and mostly its text encoder too.

    pipeline  all that draws a picture of a text, with the weights as they are now
    frozen    of the parts that do not learn, a digest of each, lest they are other ones when the run goes on
    """

    NAME: ClassVar[str] = "text U-Net"

    pipeline: Pipeline
    frozen: Mapping[str, str]

    @classmethod
    def build(cls, folder: Path, config: TrainConfig, *parts: Any, rng: Any) -> Self:
        """parts: the U-Net's configuration, the schedule, the tokenizer, the autoencoder or Pixels, and the text
        encoder: its configuration, or one that is to stay as it is.
        """
        network, schedule, tokenizer, vae, heard = parts
        unet = TextUNet(network, rng, config.backend)
        encoder = TextEncoder(heard, rng, config.backend) if isinstance(heard, TextEncoderConfig) else heard
        frozen = digests(tokenizer, vae, heard)
        sampler = Sampler(offset=1, clip=None if isinstance(vae, VAE) else 1.0)  # offset: as diffusers wants it
        pipeline = Pipeline(tokenizer, encoder, unet, vae, schedule, sampler)
        learned = [p for _, p in _learned(pipeline, frozen)]
        optimizer = make_optimizer(learned, config)
        return cls(folder=folder, config=config, optimizer=optimizer, pipeline=pipeline, frozen=frozen)

    @classmethod
    def parts_of(cls, folder: Path, config: TrainConfig, metadata: Mapping[str, str]) -> tuple[Any, ...]:
        network, frozen = TextUNetConfig.of(json.loads(metadata["unet"])), json.loads(metadata["frozen"])
        if not isinstance(frozen, dict):
            raise MinidiffError("the digests of what does not learn are damaged: start a new run")
        schedule = schedule_from_config(json.loads(metadata["schedule"]))
        vae, heard = Pixels(network.in_channels), TextEncoderConfig.of(json.loads(metadata["text_encoder"]))
        try:
            tokenizer = load_tokenizer(folder / "tokenizer")
            if "vae" in frozen:
                vae = load_vae(folder / "vae", config.backend)
            if "text_encoder" in frozen:
                heard = load_text_encoder(folder / "text_encoder", config.backend)
        except MinidiffError as error:
            raise DamagedPart(str(error)) from None
        for name, found in digests(tokenizer, vae, heard).items():
            if frozen.get(name) != found:
                raise DamagedPart(f"{folder / name}: is not the one that the run was started with; copy it again")
        return network, schedule, tokenizer, vae, heard

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
        return *native_size(self.pipeline), self.pipeline.vae.config.in_channels

    def model(self, x_t: Any, t: np.ndarray, cond: np.ndarray, rng: Any = None) -> Tensor:
        """The networks as one: what is to be predicted at x_t (N, h, w, C) and t (N,) of the tokens cond (N, T)."""
        with no_grad() if "text_encoder" in self.frozen else nullcontext():
            text = self.pipeline.text_encoder(cond)
        return self.pipeline.unet(x_t, t, text, rng)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        return _learned(self.pipeline, self.frozen)

    def batches(self, dataset: Dataset) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
        """Pictures, and the tokens of their captions, of which some are those of the empty text."""
        config, tokenizer = self.config, self.pipeline.tokenizer
        ids, (empty,) = tokenizer(list(dataset.captions)), tokenizer([""])  # (N, T), (T,)

        def make_batch(step: int) -> tuple[np.ndarray, np.ndarray]:
            x0, _ = batch(dataset, step, config.batch_size, config.seed, config.flip, config.pad_crop)
            texts = ids[numbers(len(dataset), step, config.batch_size, config.seed)]  # (B, T)
            return x0, drop_labels(texts, empty, config.label_dropout, config.seed, step)

        return make_batch

    def learn(self, batch: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> StepStats:
        (x0, ids), config = batch, self.config
        latents, schedule = self._latents(x0, rng), self.pipeline.schedule
        return train_step(self.model, schedule, self.optimizer, latents, rng, ids, config.min_snr, config.accumulate)

    def probe(self, dataset: Dataset, index: np.ndarray, rng: np.random.Generator) -> float:
        """The training loss (`noise_loss`), each picture under its caption."""
        ids = self.pipeline.tokenizer([dataset.captions[i] for i in index])
        latents = self._latents(to_float(dataset.take(index)), rng)
        return noise_loss(self.model, self.pipeline.schedule, latents, ids, rng, self.config)

    def _latents(self, x0: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Those of pictures x0 (N, H, W, C), drawn from their posterior and scaled, part by part of a batch."""
        size = self.config.batch_size // self.config.accumulate
        parts = (x0[start : start + size] for start in range(0, len(x0), size))
        return np.concatenate([encoded(self.pipeline, part, rng) for part in parts])  # (N, h, w, latent_channels)

    def sheet(self, seen: Dataset, held_out: Dataset) -> Image:
        """Pictures of captions, with these: half of them were learned, half were held out."""
        prompts = [texts[i] for texts in (seen.captions, held_out.captions) for i in spread(len(texts), PREVIEW // 2)]
        rng = np.random.default_rng([self.config.seed, 0])
        images = text_to_image(self.pipeline, prompts, guidance=GUIDANCE, steps=WALK, rng=rng)
        return captioned(to_uint8(images), prompts)

    def prepare(self) -> None:
        save_parts(self.folder, self.pipeline, self.frozen)

    def export(self, folder: Path, weights: Weights) -> None:
        averaged: dict[str, dict[str, np.ndarray]] = {}
        for name, a in weights.items():
            part, _, inner = name.partition(".")
            averaged.setdefault(part, {})[inner] = a
        others = () if folder == self.folder else self.frozen  # which lie in its own folder already
        save_parts(folder, self.pipeline, [*averaged, *others], averaged)


def _learned(pipeline: Pipeline, frozen: Mapping[str, str]) -> Iterator[tuple[str, Parameter]]:
    for name, network in (("unet", pipeline.unet), ("text_encoder", pipeline.text_encoder)):
        if name not in frozen:
            yield from ((f"{name}.{inner}", p) for inner, p in network.named_parameters())


def digests(tokenizer: Tokenizer, vae: VAE | Pixels, heard: TextEncoder | TextEncoderConfig) -> dict[str, str]:
    """SHA-256 of those that do not learn, by name: of a tokenizer's words, of a network's weights."""
    special, found = tokenizer.special, sha256()
    names = [special.bos, special.eos, special.unk, special.pad, sorted(special.after_clean)]
    found.update(json.dumps([list(tokenizer.vocab.items()), list(tokenizer.ranks), names, tokenizer.length]).encode())
    digests = {"tokenizer": found.hexdigest()}
    for name, network in (("vae", vae), ("text_encoder", heard)):
        if isinstance(network, Module):
            found = sha256()
            for p in network.parameters():
                found.update(p.numpy().tobytes())
            digests[name] = found.hexdigest()
    return digests
