"""The U-Net of DDPM (Ho et al. 2020, appendix B), as diffusers' UNet2DModel builds it.

Down: residual blocks, each output pushed on the stack hs; every level but the last ends with downsampling by 2.
Middle: residual block, self-attention, residual block. Up: the mirror image; the input of every residual block is
concatenated with an entry popped from hs (skip connection). The time embedding enters every residual block.
Attributes are named as in diffusers, so a checkpoint's keys are the parameter names used here.
"""

from functools import partial
from typing import Any

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine.nn import Conv2d, Embedding, GroupNorm, Module, SelfAttention
from minidiff.engine.pooling import avg_pool
from minidiff.engine.tensor import Tensor
from minidiff.models.blocks import (
    BlockConfig,
    DownBlock,
    Downsample,
    MidBlock,
    ResnetBlock,
    TimestepEmbedding,
    UpBlock,
    Upsample,
    timestep_embedding,
    up_block_widths,
)
from minidiff.models.config import UNetConfig


def resamples_in_resnet(block_type: str, resample_type: str) -> bool:
    """Whether a level resamples inside a residual block; for levels with attention the configuration decides."""
    return block_type.startswith("Resnet") or ("Attn" in block_type and resample_type == "resnet")


def self_attention(channels: int, cfg: UNetConfig, rng: Any, groups: int | None) -> SelfAttention:
    """Self-attention over that many channels, with heads of attention_head_dim channels."""
    heads = channels // (cfg.attention_head_dim or channels)
    return SelfAttention(channels, heads, groups, cfg.norm_eps, rng)


def down_blocks(cfg: UNetConfig, block_cfg: BlockConfig, rng: Any) -> list[DownBlock]:
    """The levels from full to lowest resolution."""
    blocks: list[DownBlock] = []
    channels = cfg.block_out_channels[0]
    last = len(cfg.block_out_channels) - 1
    for i, (block_type, width) in enumerate(zip(cfg.down_block_types, cfg.block_out_channels, strict=True)):
        attention = None
        if "Attn" in block_type:
            attention = partial(self_attention, width, cfg, rng, cfg.norm_num_groups)
        downsample = partial(Downsample, width, cfg.downsample_padding, rng)
        if resamples_in_resnet(block_type, cfg.downsample_type):
            downsample = partial(ResnetBlock, width, width, block_cfg, rng, avg_pool)
        widths = [channels] + [width] * cfg.layers_per_block
        blocks.append(DownBlock(widths, block_cfg, rng, attention, None if i == last else downsample))
        channels = width
    return blocks


def mid_block(cfg: UNetConfig, block_cfg: BlockConfig, rng: Any) -> MidBlock:
    """Residual block, self-attention if add_attention, residual block, at the lowest resolution."""
    channels = cfg.block_out_channels[-1]
    groups = cfg.attn_norm_num_groups or (None if cfg.scale_shift else cfg.norm_num_groups)
    attention = partial(self_attention, channels, cfg, rng, groups) if cfg.add_attention else None
    return MidBlock(channels, block_cfg, rng, attention, cfg.mid_block_scale_factor)


def up_blocks(cfg: UNetConfig, block_cfg: BlockConfig, rng: Any) -> list[UpBlock]:
    """The levels from lowest to full resolution."""
    blocks: list[UpBlock] = []
    widths = cfg.block_out_channels
    last = len(widths) - 1
    inputs = up_block_widths(widths[0], widths, cfg.layers_per_block)
    for i, (block_type, width) in enumerate(zip(cfg.up_block_types, reversed(widths), strict=True)):
        attention = None
        if "Attn" in block_type:
            attention = partial(self_attention, width, cfg, rng, cfg.norm_num_groups)
        upsample = partial(Upsample, width, rng)
        if resamples_in_resnet(block_type, cfg.upsample_type):
            upsample = partial(ResnetBlock, width, width, block_cfg, rng, F.upsample_nearest)
        upsample = None if i == last else upsample
        blocks.append(UpBlock(inputs[i], width, block_cfg, rng, attention, upsample))
    return blocks


class UNet(Module):
    """model_output = unet(x_t, t): the prediction of eps, or of x0, v or another target it was trained on.

    config   its architecture; kept as `unet.config`
    rng      initialises the weights; None: zeros, to be loaded
    backend  of the parameters: "numpy", "numba", "cupy" or "cupy-tf32"
    """

    def __init__(self, config: UNetConfig, rng: Any, backend: str = "numba"):
        self.config: UNetConfig = config
        cfg = config
        width = cfg.block_out_channels[0]
        self.conv_in: Conv2d = Conv2d(cfg.in_channels, width, 3, rng, pad=1)
        self.time_embedding: TimestepEmbedding = TimestepEmbedding(width, cfg.time_embed_dim, rng)
        if cfg.num_class_embeds is not None:
            self.class_embedding: Embedding = Embedding(cfg.num_class_embeds, cfg.time_embed_dim, rng)

        block_cfg = BlockConfig(cfg.norm_num_groups, cfg.norm_eps, cfg.time_embed_dim, cfg.scale_shift, cfg.dropout)
        self.down_blocks: list[DownBlock] = down_blocks(cfg, block_cfg, rng)
        self.mid_block: MidBlock = mid_block(cfg, block_cfg, rng)
        self.up_blocks: list[UpBlock] = up_blocks(cfg, block_cfg, rng)

        self.conv_norm_out: GroupNorm = GroupNorm(cfg.norm_num_groups, width, cfg.norm_eps)
        self.conv_out: Conv2d = Conv2d(width, cfg.out_channels, 3, rng, pad=1)
        self.move(backend)

    def __call__(self, x_t: Any, t: np.ndarray, cond: np.ndarray | None = None, rng: Any = None) -> Tensor:
        """The prediction, (N, H, W, out_channels).

        x_t   (N, H, W, C) array or Tensor; H and W divisible by 2^(levels - 1)
        t     (N,) int, 0-based
        cond  class labels (N,) int if num_class_embeds is set, else None
        rng   for dropout; None: no dropout
        Raises ValueError if a shape does not match, or labels are missing or unexpected.
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
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of its images; 32 x 32 if the configuration has no sample_size."""
        size = self.config.sample_size or 32
        height, width = size if isinstance(size, tuple) else (size, size)
        return height, width, self.config.in_channels

    def _temb(self, t: np.ndarray, cond: np.ndarray | None) -> Tensor:
        cfg = self.config
        sinusoids = timestep_embedding(t, cfg.block_out_channels[0], cfg.flip_sin_to_cos, cfg.freq_shift)
        temb = self.time_embedding(Tensor(sinusoids, self.backend))
        return temb if cond is None else F.add(temb, self.class_embedding(cond))  # (N, E)

    def _check(self, x_t: Tensor, t: np.ndarray, cond: np.ndarray | None) -> None:
        cfg = self.config
        factor = 2 ** (len(cfg.block_out_channels) - 1)
        if len(x_t.shape) != 4 or x_t.shape[3] != cfg.in_channels:
            raise ValueError(f"x_t has shape {x_t.shape}, the network takes (N, H, W, {cfg.in_channels})")
        N, H, W, _ = x_t.shape
        if H % factor or W % factor:
            raise ValueError(f"x_t is {H}x{W}: the network needs height and width divisible by {factor}")
        if np.shape(t) != (N,):
            raise ValueError(f"t has shape {np.shape(t)}, x_t holds {N} images: give ({N},)")
        if cond is None and cfg.num_class_embeds is not None:
            raise ValueError("cond is missing: this network is conditioned on class labels")
        if cond is not None and cfg.num_class_embeds is None:
            raise ValueError("cond is given, but this network was made without num_class_embeds")
        if cond is not None and np.shape(cond) != (N,):
            raise ValueError(f"cond has shape {np.shape(cond)}, x_t holds {N} images: give ({N},)")
