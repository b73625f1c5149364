"""The variational autoencoder of latent diffusion: images to latents, 2^(levels - 1) times smaller per side, and back.

Rombach et al. 2022 (arXiv:2112.10752), section 3.1; Kingma & Welling 2014. The encoder predicts a diagonal Gaussian,
from which the latents are sampled. Built from the U-Net's blocks, without time embedding and skip connections.
Attributes are named as in diffusers' AutoencoderKL.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine import gaussian
from minidiff.engine.backend import get_backend
from minidiff.engine.fused.norm_conv import norm_conv
from minidiff.engine.losses import mse
from minidiff.engine.nn import Conv2d, GroupNorm, Module, SelfAttention
from minidiff.engine.rng import InitRng, Rng
from minidiff.engine.tensor import Tensor
from minidiff.models.blocks import BlockConfig, Downsample, MidBlock, ResnetBlock, Upsample
from minidiff.models.config import VAEConfig

EPS = 1e-6  # of all normalisations


class Level(Module):
    """Residual blocks, then downsampling (encoder) or upsampling (decoder), except in the last level.

    widths  channels of the first input, then of each residual block's output
    """

    def __init__(
        self, widths: list[int], cfg: VAEConfig, rng: InitRng, downsample: bool = False, upsample: bool = False
    ):
        self.resnets: list[ResnetBlock] = [resnet(i, o, cfg, rng) for i, o in zip(widths, widths[1:], strict=False)]
        self.downsamplers: list[Downsample] = [Downsample(widths[-1], 0, rng)] if downsample else []
        self.upsamplers: list[Upsample] = [Upsample(widths[-1], rng)] if upsample else []

    def __iter__(self) -> Iterator[Any]:
        """The layers, in the order in which they are applied."""
        yield from (*self.resnets, *self.downsamplers, *self.upsamplers)


def resnet(inputs: int, outputs: int, cfg: VAEConfig, rng: InitRng) -> ResnetBlock:
    """A residual block without time embedding."""
    return ResnetBlock(inputs, outputs, BlockConfig(cfg.norm_num_groups, EPS), rng)


def mid_block(cfg: VAEConfig, rng: InitRng) -> MidBlock:
    """Residual block, self-attention with one head, residual block, at the lowest resolution."""
    C = cfg.block_out_channels[-1]
    attentions = [SelfAttention(C, 1, cfg.norm_num_groups, EPS, rng)] if cfg.mid_block_add_attention else []
    return MidBlock(attentions, [resnet(C, C, cfg, rng) for _ in range(2)])


class Encoder(Module):
    """(N, H, W, in_channels) -> (N, h, w, 2 latent_channels): means, then log-variances."""

    def __init__(self, cfg: VAEConfig, rng: InitRng):
        widths = cfg.block_out_channels
        self.conv_in: Conv2d = Conv2d(cfg.in_channels, widths[0], 3, rng, pad=1)
        self.down_blocks: list[Level] = []
        h = widths[0]
        for i, width in enumerate(widths):
            channels = [h] + [width] * cfg.layers_per_block
            self.down_blocks.append(Level(channels, cfg, rng, downsample=i < len(widths) - 1))
            h = width
        self.mid_block: MidBlock = mid_block(cfg, rng)
        self.conv_norm_out: GroupNorm = GroupNorm(cfg.norm_num_groups, h, EPS)
        self.conv_out: Conv2d = Conv2d(h, 2 * cfg.latent_channels, 3, rng, pad=1)

    def __call__(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for layer in chain.from_iterable(self.down_blocks):
            h = layer(h)
        h = self.mid_block(h)
        return norm_conv(self.conv_norm_out, self.conv_out, h)


class Decoder(Module):
    """(N, h, w, latent_channels) -> (N, H, W, out_channels)."""

    def __init__(self, cfg: VAEConfig, rng: InitRng):
        widths = cfg.block_out_channels[::-1]
        self.conv_in: Conv2d = Conv2d(cfg.latent_channels, widths[0], 3, rng, pad=1)
        self.mid_block: MidBlock = mid_block(cfg, rng)
        self.up_blocks: list[Level] = []
        h = widths[0]
        for i, width in enumerate(widths):
            channels = [h] + [width] * (cfg.layers_per_block + 1)
            self.up_blocks.append(Level(channels, cfg, rng, upsample=i < len(widths) - 1))
            h = width
        self.conv_norm_out: GroupNorm = GroupNorm(cfg.norm_num_groups, h, EPS)
        self.conv_out: Conv2d = Conv2d(h, cfg.out_channels, 3, rng, pad=1)

    def __call__(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z))
        for layer in chain.from_iterable(self.up_blocks):  # no caller of a layer holds the last level's input
            h = layer(h)
        return norm_conv(self.conv_norm_out, self.conv_out, h)


class Posterior(NamedTuple):
    """A diagonal Gaussian over latents; mean and std (N, h, w, latent_channels)."""

    mean: np.ndarray
    std: np.ndarray

    def sample(self, rng: Rng) -> np.ndarray:
        """A sample of the latents, mean + std eps; rng has `standard_normal`."""
        return self.mean + self.std * rng.standard_normal(self.mean.shape, dtype=np.float32)


def vae_loss(vae: "VAE", x: np.ndarray, eps: np.ndarray, kl: float) -> Tensor:
    """The loss of a beta-VAE (Higgins et al. 2017): mean squared error + kl * KL(posterior || N(0, I)), a scalar.

    The error is that of x (N, H, W, C), reconstructed from the latents mean + std eps, eps (N, h, w, latent_channels).
    Both terms are means over their elements. With a Gaussian likelihood of matching variance it is the negative
    evidence lower bound up to scale and constants (Kingma & Welling 2014, eq. 10). Stable Diffusion's autoencoder was
    trained with a perceptual and an adversarial loss as well (Rombach et al. 2022, section 3.1).
    """
    mean, log_variance = F.split(vae.moments(x))
    latents = gaussian.reparameterised_sample(mean, log_variance, eps)
    reconstruction_error = mse(vae.decode(latents), x)
    return F.add(reconstruction_error, F.affine(gaussian.kl_divergence(mean, log_variance), kl))


class VAE(Module):
    """latents = vae.encode(x).sample(rng); x = vae.decode(latents).numpy().

    Latents here are unscaled; the U-Net works with latents times `config.scaling_factor`. config, rng, backend: as for
    UNet.
    """

    def __init__(self, config: VAEConfig, rng: InitRng, backend: str = "numba"):
        self.config: VAEConfig = config
        cfg = config
        C = config.latent_channels
        self.encoder: Encoder = Encoder(cfg, rng)
        self.decoder: Decoder = Decoder(cfg, rng)
        self.quant_conv: Conv2d | None = Conv2d(2 * C, 2 * C, 1, rng) if cfg.use_quant_conv else None
        self.post_quant_conv: Conv2d | None = Conv2d(C, C, 1, rng) if cfg.use_post_quant_conv else None
        self.move(backend)

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Shape (N, h, w, latent_channels) of the latents of images (N, H, W, C)."""
        N, H, W, _ = shape
        return N, H // self.factor, W // self.factor, self.config.latent_channels

    @property
    def factor(self) -> int:
        """Downsampling factor per side: H / h and W / w."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def moments(self, x: Any) -> Tensor:
        """Means and log-variances, (N, H / factor, W / factor, 2 latent_channels), for images x (N, H, W, C).

        Raises ValueError if C differs or H or W is not divisible by factor.
        """
        x = x if isinstance(x, Tensor) else Tensor(x, self.backend)
        if len(x.shape) != 4 or x.shape[3] != self.config.in_channels:
            raise ValueError(f"x has shape {x.shape}, the encoder takes (N, H, W, {self.config.in_channels})")
        if x.shape[1] % self.factor or x.shape[2] % self.factor:
            raise ValueError(f"x is {x.shape[1]}x{x.shape[2]}: height and width must be divisible by {self.factor}")
        h = self.encoder(x)
        return h if self.quant_conv is None else self.quant_conv(h)

    def encode(self, x: Any) -> Posterior:
        """The posterior of the latents of x (N, H, W, C), in host memory. Raises ValueError as `moments`."""
        mean, log_variance = np.split(self.moments(x).numpy(), 2, axis=-1)
        return Posterior(mean, np.exp(0.5 * log_variance.clip(*gaussian.LOG_VARIANCES)))

    def decode(self, z: Any) -> Tensor:
        """Images (N, h factor, w factor, C) from latents z (N, h, w, latent_channels).

        Raises ValueError if z has another shape.
        """
        z = z if isinstance(z, Tensor) else Tensor(z, self.backend)
        if len(z.shape) != 4 or z.shape[3] != self.config.latent_channels:
            raise ValueError(f"z has shape {z.shape}, the decoder takes (N, h, w, {self.config.latent_channels})")
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))

    def decode_in_tiles(self, z: np.ndarray) -> np.ndarray:
        """`decode` tile by tile, for images too large for memory; returns an array in host memory.

        As in diffusers: tiles of config.sample_size pixels overlap by a quarter, where they are blended linearly, with
        the tile above first, then with the tile to the left. Tiles are decoded independently, so the image differs
        slightly from that of `decode`.
        """
        size = self.config.sample_size
        pixels = size[0] if isinstance(size, tuple) else size
        side = max(1, pixels // self.factor)  # of a tile, in latents
        step = max(1, int(side * 0.75))
        overlap = int(pixels * 0.25)
        kept = pixels - overlap
        rows = [
            [self.decode(z[:, i : i + side, j : j + side]).numpy().copy() for j in range(0, z.shape[2], step)]
            for i in range(0, z.shape[1], step)
        ]
        for i, row in enumerate(rows):
            for j, tile in enumerate(row):
                if i > 0:
                    blend(rows[i - 1][j], tile, overlap, axis=1)
                if j > 0:
                    blend(row[j - 1], tile, overlap, axis=2)
        return np.concatenate([np.concatenate([tile[:, :kept, :kept] for tile in row], 2) for row in rows], 1)


class Pixels:
    """The identity in place of an autoencoder, for diffusion in pixel space: an image is its own latents."""

    factor = 1

    def __init__(self, channels: int):
        self.config: VAEConfig = VAEConfig(
            in_channels=channels, out_channels=channels, latent_channels=channels, scaling_factor=1
        )

    def encode(self, x: np.ndarray) -> Posterior:
        """Mean x, standard deviation 0."""
        return Posterior(x, np.zeros_like(x))

    def decode(self, z: np.ndarray) -> Tensor:
        """z as a Tensor."""
        return Tensor(z, get_backend("numpy"))

    def decode_in_tiles(self, z: np.ndarray) -> np.ndarray:
        """z."""
        return z


def blend(previous: np.ndarray, tile: np.ndarray, overlap: int, axis: int) -> None:
    """Blend the end of the previous tile linearly into the start of this one along an axis, in place."""
    overlap = min(previous.shape[axis], tile.shape[axis], overlap)
    weight = (np.arange(overlap, dtype=np.float32) / max(overlap, 1)).reshape(-1, *[1] * (3 - axis))
    end = previous.take(range(previous.shape[axis] - overlap, previous.shape[axis]), axis)
    start = tile[(slice(None),) * axis + (slice(0, overlap),)]
    start[...] = end * (1 - weight) + start * weight
