"""Runs of an autoencoder of images.

RUN/vae                          the averaged weights, which diffusers' AutoencoderKL opens
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL.Image import Image

from minidiff.data.batches import batch, evenly_spaced
from minidiff.data.dataset import Dataset, slices
from minidiff.data.imaging import sheet, to_float, to_uint8
from minidiff.engine.nn import Parameter
from minidiff.engine.optim import AdamW
from minidiff.engine.rng import InitRng, Rng
from minidiff.engine.tensor import no_grad
from minidiff.errors import MinidiffError
from minidiff.formats.networks import save_network
from minidiff.models.config import VAEConfig
from minidiff.models.default_configs import GROUPS, check_width, downsamplings
from minidiff.models.vae import VAE, vae_loss
from minidiff.training.config import TrainConfig
from minidiff.training.run import Run, Weights
from minidiff.training.step import StepStats, gradient_step, make_optimizer

SHEET_IMAGES = 24  # images on a sheet, each beside its reconstruction


@dataclass(frozen=True, kw_only=True)
class VAERun(Run):
    """An autoencoder in training."""

    NAME: ClassVar[str] = "autoencoder"

    vae: VAE

    @classmethod
    def build(cls, folder: Path, config: TrainConfig, *parts: Any, rng: InitRng) -> Self:
        """parts: the network's configuration."""
        (network,) = parts
        vae = VAE(network, rng, config.backend)
        return cls(folder=folder, config=config, optimizer=make_optimizer(vae.named_parameters(), config), vae=vae)

    @classmethod
    def parts_of(cls, folder: Path, config: TrainConfig, metadata: Mapping[str, str]) -> tuple[VAEConfig]:
        return (VAEConfig.of(json.loads(metadata["vae"])),)

    def metadata(self) -> dict[str, str]:
        return {"vae": json.dumps(self.vae.config.to_dict())}

    @property
    def widths(self) -> tuple[int, ...]:
        return self.vae.config.block_out_channels

    @property
    def shape(self) -> tuple[int, int, int]:
        size, channels = self.vae.config.sample_size, self.vae.config.in_channels
        height, width = size if isinstance(size, tuple) else (size, size)
        return height, width, channels

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        return self.vae.named_parameters()

    def batches(self, dataset: Dataset) -> Callable[[int], np.ndarray]:
        """Images (N, H, W, C)."""
        config = self.config
        return lambda step: batch(dataset, step, config.batch_size, config.seed, config.flip, config.pad_crop)[0]

    def train_batch(self, batch: np.ndarray, rng: np.random.Generator) -> StepStats:
        return vae_step(self.vae, self.optimizer, batch, rng, self.config.kl, self.config.accumulate)

    def validation_loss(self, dataset: Dataset, index: np.ndarray, rng: np.random.Generator) -> float:
        """Mean squared error of the reconstructions from the latents' means."""
        x0, size = to_float(dataset.take(index)), self.config.batch_size // self.config.accumulate
        parts = (x0[part] for part in slices(len(x0), size))
        return sum(float(np.square(reconstruct(self.vae, x) - x, dtype=np.float64).sum()) for x in parts) / x0.size

    def describe_validation(self, loss: float) -> str:
        return f"PSNR of the averaged weights on fixed images {psnr(loss):.2f} dB"

    def sheet(self, train_set: Dataset, held_out: Dataset) -> Image:
        """Images of the held-out set, each beside its reconstruction."""
        images = held_out.take(evenly_spaced(len(held_out), SHEET_IMAGES))  # (n, H, W, C)
        with no_grad():
            outputs = to_uint8(reconstruct(self.vae, to_float(images)))
        pairs = np.stack([images, outputs], 1).reshape(-1, *images.shape[1:])  # (2 n, H, W, C)
        return sheet(pairs, columns=8)

    def export(self, folder: Path, weights: Weights) -> None:
        save_network(folder / "vae", self.vae.config.to_dict(), weights)


def vae_step(vae: VAE, optimizer: AdamW, x: np.ndarray, rng: Rng, kl: float = 1e-4, accumulate: int = 1) -> StepStats:
    """One step on `vae_loss` of images x float32 (N, H, W, C) in [-1, 1]; rng draws the noise of their latents.

    kl is the weight of the KL term; accumulate as in `train_step`.
    """
    eps = rng.standard_normal(vae.latent_shape(x.shape), dtype=np.float32)
    return gradient_step(optimizer, len(x), accumulate, lambda part: vae_loss(vae, x[part], eps[part], kl))


def reconstruct(vae: VAE, x: np.ndarray) -> np.ndarray:
    """Reconstructions of images x (N, H, W, C) in [-1, 1] from their latents' means, clipped to [-1, 1]."""
    return vae.decode(vae.encode(x).mean).numpy().clip(-1, 1)


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(2^2 / error), of a mean squared error of values in [-1, 1]."""
    return math.inf if error == 0 else 10 * math.log10(4 / error)


def default_vae(shape: tuple[int, int, int], width: int = 32, depth: int | None = None) -> VAEConfig:
    """An autoencoder for images (H, W, C), whose latents have a quarter of the images' elements: 32x32x3 -> 8x8x12.

    Its levels are `width`, 2 `width`, 2 `width`, ... channels wide. There are `depth` of them, each but the last
    downsampling by 2; None: 3, or 2 where H or W is no multiple of 4.
    Raises MinidiffError if H or W is odd, if `width` is no multiple of 8, and if `depth` does not fit H and W.
    """
    H, W, C = shape
    if H % 2 or W % 2:
        raise MinidiffError(f"{W}x{H} images: the autoencoder needs an even height and width; resize them with --size")
    check_width(width, GROUPS)
    usual = 2 if H % 4 == 0 and W % 4 == 0 else 1
    downsamples = usual if depth is None else downsamplings(H, W, depth, fewest=2, most=6)
    widths = (width,) + (2 * width,) * downsamples
    return VAEConfig(
        in_channels=C,
        out_channels=C,
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=C * 4 ** (downsamples - 1),
        norm_num_groups=GROUPS,
        sample_size=H if H == W else (H, W),
        scaling_factor=1.0,
    )
