"""The noise predictor: the U-Net of DDPM (Ho et al. 2020, appendix B), as diffusers' UNet2DModel builds it.

Down: residual blocks, every output pushed on the stack hs, a halving at the end of each level but the last.
Middle: residual, attention, residual. Up: the mirror image, every block taking one of hs back in.
The time t enters every residual block, as a sinusoidal embedding passed through a small network.
Attributes are named as diffusers names them, so the keys of a checkpoint are the names used here.
"""

from functools import partial

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine.nn import Conv2d, Embedding, GroupNorm, Module, SelfAttention
from minidiff.engine.pooling import avg_pool
from minidiff.engine.tensor import Tensor
from minidiff.models.blocks import (
    DownBlock,
    Downsample,
    Kind,
    MidBlock,
    ResnetBlock,
    TimestepEmbedding,
    UpBlock,
    Upsample,
    skip_widths,
    timestep_embedding,
)
from minidiff.models.config import UNetConfig


def resamples_in_resnet(kind: str, resample_type: str) -> bool:
    """Whether a level halves or doubles inside a residual block; levels with attention do as the configuration says."""
    return kind.startswith("Resnet") or ("Attn" in kind and resample_type == "resnet")


def attention_of(channels: int, cfg: UNetConfig, rng, backend: str, groups: int | None) -> SelfAttention:
    """Self-attention with as many heads as the configuration gives that many channels."""
    heads = channels // (cfg.attention_head_dim or channels)
    return SelfAttention(channels, heads, groups, cfg.norm_eps, rng, backend)


class UNet(Module):
    """eps_hat = unet(x_t, t): what noise is in x_t? (Or x0, or v, if that is what it was trained to say.)

    config   what it is made of; kept as `unet.config`
    rng      draws the starting weights; None: they are zeros, to be loaded
    backend  where they live: "numpy" or "numba"
    """

    def __init__(self, config: UNetConfig, rng, backend: str = "numba"):
        cfg = self.config = config
        widths = cfg.block_out_channels
        self.conv_in = Conv2d(cfg.in_channels, widths[0], 3, rng, backend, pad=1)
        self.time_embedding = TimestepEmbedding(widths[0], cfg.time_embed_dim, rng, backend)
        if cfg.num_class_embeds is not None:
            self.class_embedding = Embedding(cfg.num_class_embeds, cfg.time_embed_dim, rng, backend)

        groups, last = cfg.norm_num_groups, len(widths) - 1
        kind = Kind(groups, cfg.norm_eps, cfg.time_embed_dim, cfg.scale_shift, cfg.dropout)
        self.down_blocks, h = [], widths[0]
        for i, (name, width) in enumerate(zip(cfg.down_block_types, widths, strict=True)):
            attend = partial(attention_of, width, cfg, rng, backend, groups) if "Attn" in name else None
            halve = partial(Downsample, width, cfg.downsample_padding, rng, backend)
            if resamples_in_resnet(name, cfg.downsample_type):
                halve = partial(ResnetBlock, width, width, kind, rng, backend, avg_pool)
            inputs = [h] + [width] * cfg.layers_per_block
            self.down_blocks.append(DownBlock(inputs, kind, rng, backend, attend, None if i == last else halve))
            h = width

        of_middle = cfg.attn_norm_num_groups or (None if cfg.scale_shift else groups)
        attend = partial(attention_of, h, cfg, rng, backend, of_middle) if cfg.add_attention else None
        self.mid_block = MidBlock(h, kind, rng, backend, attend, cfg.mid_block_scale_factor)

        self.up_blocks = []
        inputs = skip_widths(widths[0], widths, cfg.layers_per_block)
        for i, (name, width) in enumerate(zip(cfg.up_block_types, reversed(widths), strict=True)):
            attend = partial(attention_of, width, cfg, rng, backend, groups) if "Attn" in name else None
            double = partial(Upsample, width, rng, backend)
            if resamples_in_resnet(name, cfg.upsample_type):
                double = partial(ResnetBlock, width, width, kind, rng, backend, F.upsample_nearest)
            self.up_blocks.append(UpBlock(inputs[i], width, kind, rng, backend, attend, None if i == last else double))
            h = width

        self.conv_norm_out = GroupNorm(cfg.norm_num_groups, h, cfg.norm_eps, backend)
        self.conv_out = Conv2d(h, cfg.out_channels, 3, rng, backend, pad=1)

    def __call__(self, x_t, t: np.ndarray, cond: np.ndarray | None = None, rng=None) -> Tensor:
        """eps_hat (N, H, W, out_channels).

        x_t   (N, H, W, C) array or Tensor; H and W divisible by 2 to the number of halvings
        t     (N,) int, 0-based; cond: labels (N,) int if the net was made with num_class_embeds
        rng   draws dropout; without it there is none
        Raises ValueError if a shape does not fit, or labels are missing or not expected.
        """
        x_t = x_t if isinstance(x_t, Tensor) else Tensor(x_t, self.backend)
        self._check(x_t, t, cond)
        silu_temb = F.silu(self._temb(t, cond))  # (N, E)
        h = self.conv_in(F.affine(x_t, 2, -1) if self.config.center_input_sample else x_t)
        hs = [h]
        for down in self.down_blocks:
            h = down(h, silu_temb, hs, rng)
        h = self.mid_block(h, silu_temb, rng)
        for up in self.up_blocks:
            h = up(h, silu_temb, hs, rng)
        return self.conv_out(self.conv_norm_out(h, silu=True))

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the pictures it was made for; 32 x 32 if its configuration does not say."""
        size = self.config.sample_size or 32
        height, width = size if isinstance(size, tuple) else (size, size)
        return height, width, self.config.in_channels

    def _temb(self, t: np.ndarray, cond: np.ndarray | None) -> Tensor:
        cfg = self.config
        sinusoids = timestep_embedding(t, cfg.block_out_channels[0], cfg.flip_sin_to_cos, cfg.freq_shift)
        temb = self.time_embedding(Tensor(sinusoids, self.backend))
        return temb if cond is None else F.add(temb, self.class_embedding(cond))  # (N, E)

    def _check(self, x_t: Tensor, t: np.ndarray, cond: np.ndarray | None) -> None:
        cfg, halvings = self.config, len(self.config.block_out_channels) - 1
        if len(x_t.shape) != 4 or x_t.shape[3] != cfg.in_channels:
            raise ValueError(f"x_t has shape {x_t.shape}, the network takes (N, H, W, {cfg.in_channels})")
        N, H, W, _ = x_t.shape
        if H % 2**halvings or W % 2**halvings:
            raise ValueError(
                f"x_t is {H}x{W}; the network halves {halvings} times, so both must divide by {2**halvings}"
            )
        if np.shape(t) != (N,):
            raise ValueError(f"t has shape {np.shape(t)}, x_t holds {N} pictures: give ({N},)")
        if cond is None and cfg.num_class_embeds is not None:
            raise ValueError("cond is missing: this network is conditioned on labels")
        if cond is not None and cfg.num_class_embeds is None:
            raise ValueError("cond is given, but this network was made without num_class_embeds")
        if cond is not None and np.shape(cond) != (N,):
            raise ValueError(f"cond has shape {np.shape(cond)}, x_t holds {N} pictures: give ({N},)")
