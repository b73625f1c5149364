"""The autoencoder of latent diffusion: pictures become latents of an eighth of their size, and pictures again.

Rombach et al. 2022 (arXiv:2112.10752), section 3.1; a variational autoencoder (Kingma & Welling 2014): the encoder
gives each latent a normal distribution, from which one is drawn. Built of the U-Net's blocks, without time and without
skips: all that the decoder knows is the latents. Attributes are named as diffusers' AutoencoderKL names them.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine import gaussian
from minidiff.engine.backend import get_backend
from minidiff.engine.losses import mse
from minidiff.engine.nn import Conv2d, GroupNorm, Module, SelfAttention
from minidiff.engine.tensor import Tensor
from minidiff.models.blocks import Downsample, Kind, MidBlock, ResnetBlock, Upsample
from minidiff.models.latent_config import VAEConfig

EPS = 1e-6  # of all normalisations


class Level(Module):
    """Residual blocks, then a halving or a doubling, unless it is the last level."""

    def __init__(self, inputs: int, outputs: int, layers: int, cfg: VAEConfig, rng, backend: str):
        widths, kind = [inputs] + [outputs] * layers, Kind(cfg.norm_num_groups, EPS)
        self.resnets = [ResnetBlock(i, o, kind, rng, backend) for i, o in zip(widths, widths[1:], strict=False)]
        self.downsamplers: list[Downsample] = []
        self.upsamplers: list[Upsample] = []

    def __call__(self, h: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            h = layer(h)
        return h


def middle(cfg: VAEConfig, rng, backend: str) -> MidBlock:
    """Residual, attention of one head, residual, at the lowest level."""
    width = cfg.block_out_channels[-1]
    attend = partial(SelfAttention, width, 1, cfg.norm_num_groups, EPS, rng, backend)
    return MidBlock(
        width, Kind(cfg.norm_num_groups, EPS), rng, backend, attend if cfg.mid_block_add_attention else None
    )


class Encoder(Module):
    """(N, H, W, in_channels) -> (N, h, w, 2 latent_channels): means, then logarithms of variances."""

    def __init__(self, cfg: VAEConfig, rng, backend: str):
        widths = cfg.block_out_channels
        self.conv_in = Conv2d(cfg.in_channels, widths[0], 3, rng, backend, pad=1)
        self.down_blocks, h = [], widths[0]
        for i, width in enumerate(widths):
            level = Level(h, width, cfg.layers_per_block, cfg, rng, backend)
            level.downsamplers = [Downsample(width, 0, rng, backend)] if i < len(widths) - 1 else []
            self.down_blocks.append(level)
            h = width
        self.mid_block = middle(cfg, rng, backend)
        self.conv_norm_out = GroupNorm(cfg.norm_num_groups, h, EPS, backend)
        self.conv_out = Conv2d(h, 2 * cfg.latent_channels, 3, rng, backend, pad=1)

    def __call__(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for down in self.down_blocks:
            h = down(h)
        h = self.mid_block(h)
        return self.conv_out(self.conv_norm_out(h, silu=True))


class Decoder(Module):
    """(N, h, w, latent_channels) -> (N, H, W, out_channels)."""

    def __init__(self, cfg: VAEConfig, rng, backend: str):
        widths = cfg.block_out_channels[::-1]
        self.conv_in = Conv2d(cfg.latent_channels, widths[0], 3, rng, backend, pad=1)
        self.mid_block = middle(cfg, rng, backend)
        self.up_blocks, h = [], widths[0]
        for i, width in enumerate(widths):
            level = Level(h, width, cfg.layers_per_block + 1, cfg, rng, backend)
            level.upsamplers = [Upsample(width, rng, backend)] if i < len(widths) - 1 else []
            self.up_blocks.append(level)
            h = width
        self.conv_norm_out = GroupNorm(cfg.norm_num_groups, h, EPS, backend)
        self.conv_out = Conv2d(h, cfg.out_channels, 3, rng, backend, pad=1)

    def __call__(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z))
        for up in self.up_blocks:
            h = up(h)
        return self.conv_out(self.conv_norm_out(h, silu=True))


class Posterior(NamedTuple):
    """The normal distribution of every latent, (N, h, w, latent_channels) each."""

    mean: np.ndarray
    std: np.ndarray

    def sample(self, rng) -> np.ndarray:
        """Latents drawn from it; rng has `standard_normal`."""
        return self.mean + self.std * rng.standard_normal(self.mean.shape, dtype=np.float32)


def vae_loss(vae: "VAE", x: np.ndarray, eps: np.ndarray, kl: float) -> Tensor:
    """The negative evidence lower bound up to constants, a scalar (Kingma & Welling 2014, eq. 10).

    The mean squared error of the pictures x (N, H, W, C), decoded from latents mean + std eps that are drawn from their
    distribution, plus `kl` times its divergence from the standard normal one, the mean over all numbers of the latents:
    a little of it keeps them near 0 and 1, and neighbours alike. eps is (N, h, w, latent_channels).
    """
    mean, log_variance = F.split(vae.moments(x))
    error = mse(vae.decode(gaussian.draw(mean, log_variance, eps)), x)
    return F.add(error, F.affine(gaussian.divergence(mean, log_variance), kl))


class VAE(Module):
    """latents = vae.encode(x).sample(rng); x = vae.decode(latents).numpy(). Latents are not scaled here.

    The U-Net works with latents times `config.scaling_factor`. config, rng and backend as of UNet.
    """

    def __init__(self, config: VAEConfig, rng, backend: str = "numba"):
        cfg, C = config, config.latent_channels
        self.config = config
        self.encoder = Encoder(cfg, rng, backend)
        self.decoder = Decoder(cfg, rng, backend)
        self.quant_conv = Conv2d(2 * C, 2 * C, 1, rng, backend) if cfg.use_quant_conv else None
        self.post_quant_conv = Conv2d(C, C, 1, rng, backend) if cfg.use_post_quant_conv else None

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """(N, h, w, latent_channels) of pictures (N, H, W, C)."""
        N, H, W, _ = shape
        return N, H // self.factor, W // self.factor, self.config.latent_channels

    @property
    def factor(self) -> int:
        """How much smaller latents are than pictures, in height and in width."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def moments(self, x) -> Tensor:
        """Means and logarithms of variances, (N, H / factor, W / factor, 2 latent_channels), of pictures (N, H, W, C).

        Raises ValueError if their shape does not fit.
        """
        x = x if isinstance(x, Tensor) else Tensor(x, self.backend)
        if len(x.shape) != 4 or x.shape[3] != self.config.in_channels:
            raise ValueError(f"x has shape {x.shape}, the encoder takes (N, H, W, {self.config.in_channels})")
        if x.shape[1] % self.factor or x.shape[2] % self.factor:
            raise ValueError(f"x is {x.shape[1]}x{x.shape[2]}: both must divide by {self.factor}")
        h = self.encoder(x)
        return h if self.quant_conv is None else self.quant_conv(h)

    def encode(self, x) -> Posterior:
        """The distribution of the latents of x (N, H, W, C), in host memory. Raises as `moments`."""
        mean, log_variance = np.split(self.moments(x).numpy(), 2, axis=-1)
        return Posterior(mean, np.exp(0.5 * log_variance.clip(*gaussian.LOG_VARIANCES)))

    def decode(self, z) -> Tensor:
        """Pictures (N, h factor, w factor, C) of latents z (N, h, w, latent_channels). Raises ValueError for others."""
        z = z if isinstance(z, Tensor) else Tensor(z, self.backend)
        if len(z.shape) != 4 or z.shape[3] != self.config.latent_channels:
            raise ValueError(f"z has shape {z.shape}, the decoder takes (N, h, w, {self.config.latent_channels})")
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))

    def decode_in_tiles(self, z: np.ndarray) -> np.ndarray:
        """`decode` of one tile after another, for pictures too large for memory; in host memory.

        Tiles are config.sample_size pixels wide and high and overlap by a quarter, where one is faded into the next:
        the tile above is mixed in first, then the tile to the left. A tile does not see what is outside of it, so the
        picture is a little different.
        """
        size = self.config.sample_size
        pixels = size[0] if isinstance(size, tuple) else size
        side = max(1, pixels // self.factor)
        step, fade = max(1, int(side * 0.75)), int(pixels * 0.25)
        kept = pixels - fade
        rows = [
            [self.decode(z[:, i : i + side, j : j + side]).numpy().copy() for j in range(0, z.shape[2], step)]
            for i in range(0, z.shape[1], step)
        ]
        for i, row in enumerate(rows):
            for j, tile in enumerate(row):
                if i > 0:
                    faded(rows[i - 1][j], tile, fade, axis=1)
                if j > 0:
                    faded(row[j - 1], tile, fade, axis=2)
        return np.concatenate([np.concatenate([tile[:, :kept, :kept] for tile in row], 2) for row in rows], 1)


class Pixels:
    """What stands in an autoencoder's place where there is none: pictures are their own latents."""

    factor = 1

    def __init__(self, channels: int):
        self.config = VAEConfig(in_channels=channels, out_channels=channels, latent_channels=channels, scaling_factor=1)

    def encode(self, x: np.ndarray) -> Posterior:
        """The pictures themselves, for sure."""
        return Posterior(x, np.zeros_like(x))

    def decode(self, z: np.ndarray) -> Tensor:
        """The pictures themselves."""
        return Tensor(z, get_backend("numpy"))

    def decode_in_tiles(self, z: np.ndarray) -> np.ndarray:
        """The pictures themselves, of any size."""
        return z


def faded(before: np.ndarray, tile: np.ndarray, fade: int, axis: int) -> None:
    """Mix the end of the tile before into the beginning of this one, in place: less of it pixel by pixel."""
    fade = min(before.shape[axis], tile.shape[axis], fade)
    share = (np.arange(fade, dtype=np.float32) / max(fade, 1)).reshape(-1, *[1] * (3 - axis))
    end = before.take(range(before.shape[axis] - fade, before.shape[axis]), axis)
    beginning = tile[(slice(None),) * axis + (slice(0, fade),)]
    beginning[...] = end * (1 - share) + beginning * share
