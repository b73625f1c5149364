"""Runs of an autoencoder, which learns to make pictures small and large again.

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
from minidiff.data.dataset import Dataset
from minidiff.data.imaging import sheet, to_float, to_uint8
from minidiff.engine.nn import Parameter
from minidiff.engine.tensor import no_grad
from minidiff.errors import MinidiffError
from minidiff.formats.networks import save_network
from minidiff.models.config import GROUPS, check_width, downsamplings
from minidiff.models.latent_config import VAEConfig
from minidiff.models.vae import VAE, vae_loss
from minidiff.training.config import TrainConfig
from minidiff.training.run import Run, Weights
from minidiff.training.step import StepStats, gradient_step, make_optimizer

PREVIEW = 24  # pictures on a sheet, each beside what was made of it


@dataclass(frozen=True, kw_only=True)
class VAERun(Run):
    """An autoencoder in training."""

    NAME: ClassVar[str] = "autoencoder"

    vae: VAE

    @classmethod
    def build(cls, folder: Path, config: TrainConfig, *parts: Any, rng: Any) -> Self:
        """parts: the network's configuration."""
        (network,) = parts
        vae = VAE(network, rng, config.backend)
        return cls(folder=folder, config=config, optimizer=make_optimizer(vae.parameters(), config), vae=vae)

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
        """Pictures."""
        config = self.config
        return lambda step: batch(dataset, step, config.batch_size, config.seed, config.flip, config.pad_crop)[0]

    def train_batch(self, batch: np.ndarray, rng: np.random.Generator) -> StepStats:
        return vae_step(self.vae, self.optimizer, batch, rng, self.config.kl, self.config.accumulate)

    def validation_loss(self, dataset: Dataset, index: np.ndarray, rng: np.random.Generator) -> float:
        """The mean squared error of the pictures that come back, of the latents' means."""
        x0, size = to_float(dataset.take(index)), self.config.batch_size // self.config.accumulate
        parts = (x0[start : start + size] for start in range(0, len(x0), size))
        return sum(float(np.square(reconstructed(self.vae, x) - x, dtype=np.float64).sum()) for x in parts) / x0.size

    def describe_validation(self, measured: float) -> str:
        return f"PSNR of the averaged weights on fixed images {psnr(measured):.2f} dB"

    def sheet(self, seen: Dataset, held_out: Dataset) -> Image:
        """Pictures of the held-out set, each beside what comes back."""
        images = held_out.take(evenly_spaced(len(held_out), PREVIEW))  # (n, H, W, C)
        with no_grad():
            back = to_uint8(reconstructed(self.vae, to_float(images)))
        pairs = np.stack([images, back], 1).reshape(-1, *images.shape[1:])  # (2 n, H, W, C)
        return sheet(pairs, columns=8)

    def export(self, folder: Path, weights: Weights) -> None:
        save_network(folder / "vae", self.vae.config.to_dict(), weights)


def vae_step(vae: VAE, optimizer: Any, x: np.ndarray, rng: Any, kl: float = 1e-4, accumulate: int = 1) -> StepStats:
    """One step on `vae_loss` of pictures x float32 (N, H, W, C) in [-1, 1]; rng draws the noise in their latents.

    accumulate as of `train_step`.
    """
    eps = rng.standard_normal(vae.latent_shape(x.shape), dtype=np.float32)
    return gradient_step(optimizer, len(x), accumulate, lambda part: vae_loss(vae, x[part], eps[part], kl))


def reconstructed(vae: VAE, x: np.ndarray) -> np.ndarray:
    """What comes back of pictures x (N, H, W, C) in [-1, 1] by their latents' means, clipped."""
    return vae.decode(vae.encode(x).mean).numpy().clip(-1, 1)


def psnr(error: float) -> float:
    """The peak signal-to-noise ratio, in dB, at a mean squared error of numbers in [-1, 1], whose peak is 2 high."""
    return math.inf if error == 0 else 10 * math.log10(4 / error)


def default_vae(shape: tuple[int, int, int], width: int = 32, depth: int | None = None) -> VAEConfig:
    """An autoencoder for images (H, W, C), whose latents have a quarter of their channels times pixels.

    Widths 1, 2, 2, ... times `width`. It has `depth` levels, or, where that is None, halves twice, or once where two
    do not go; what is lost in height and width, but for that quarter, goes into channels: 32x32x3 becomes 8x8x12.
    Raises MinidiffError for images that cannot be halved, a width that is no multiple of 8, and a depth that does not
    go with H and W.
    """
    H, W, C = shape
    if H % 2 or W % 2:
        raise MinidiffError(f"{W}x{H} pictures cannot be halved, as the autoencoder must; cut them with --size")
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
