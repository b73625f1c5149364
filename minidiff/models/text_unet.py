"""Stable Diffusion's text-conditional U-Net, diffusers' UNet2DConditionModel.

Rombach et al. 2022 (arXiv:2112.10752), section 3.3. DDPM's U-Net with transformer blocks in place of self-attention:
self-attention among the pixels, cross-attention to the text embeddings, a position-wise feed-forward network.
Attributes are named as in diffusers.
"""

from functools import partial
from typing import Any

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine.nn import Conv2d, GroupNorm, LayerNorm, Linear, Module
from minidiff.engine.tensor import Tensor
from minidiff.models.blocks import (
    BlockConfig,
    DownBlock,
    Downsample,
    MidBlock,
    TimestepEmbedding,
    UpBlock,
    Upsample,
    timestep_embedding,
    up_block_widths,
)
from minidiff.models.config import CROSS_DOWN, CROSS_UP, TextUNetConfig


class Attention(Module):
    """Multi-head attention from x (N, T, C) to context (N, S, D), + add (N, T, C) -> (N, T, C)."""

    def __init__(self, channels: int, context_width: int, heads: int, rng: Any):
        self.heads = heads
        self.to_q: Linear = Linear(channels, channels, rng, bias=False)
        self.to_k: Linear = Linear(context_width, channels, rng, bias=False)
        self.to_v: Linear = Linear(context_width, channels, rng, bias=False)
        self.to_out: list[Linear] = [Linear(channels, channels, rng)]

    def __call__(self, x: Tensor, context: Tensor, add: Tensor) -> Tensor:
        q = self.to_q(x)  # (N, T, C)
        k = self.to_k(context)  # (N, S, C)
        v = self.to_v(context)
        q, k, v = (F.reshape(a, (*a.shape[:2], self.heads, -1)) for a in (q, k, v))  # (N, T or S, heads, C / heads)
        return self.to_out[0](F.reshape(F.attention(q, k, v), x.shape), add=add)


class GEGLU(Module):
    """h gelu(gate), h and gate the halves of a linear layer's output (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, inputs: int, outputs: int, rng: Any):
        self.proj: Linear = Linear(inputs, 2 * outputs, rng)

    def __call__(self, x: Tensor) -> Tensor:
        return F.geglu(self.proj(x))  # (N, T, outputs)


class FeedForward(Module):
    """Position-wise feed-forward network with GEGLU and 4 C hidden channels, + add: (N, T, C) -> (N, T, C)."""

    def __init__(self, channels: int, rng: Any):
        geglu = GEGLU(channels, 4 * channels, rng)
        linear = Linear(4 * channels, channels, rng)
        self.net: list[Any] = [geglu, None, linear]  # diffusers has a dropout at index 1

    def __call__(self, x: Tensor, add: Tensor) -> Tensor:
        return self.net[2](self.net[0](x), add=add)


class TransformerBlock(Module):
    """Self-attention, cross-attention, feed-forward network, each x + f(layer_norm(x)).

    x (N, T, C), context (N, S, D) -> (N, T, C).
    """

    def __init__(self, channels: int, heads: int, cfg: TextUNetConfig, rng: Any):
        self.norm1: LayerNorm = LayerNorm(channels, 1e-5)
        self.attn1: Attention = Attention(channels, channels, heads, rng)
        self.norm2: LayerNorm = LayerNorm(channels, 1e-5)
        self.attn2: Attention = Attention(channels, cfg.cross_attention_dim, heads, rng)
        self.norm3: LayerNorm = LayerNorm(channels, 1e-5)
        self.ff: FeedForward = FeedForward(channels, rng)

    def __call__(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.norm1(x)
        x = self.attn1(h, h, add=x)
        x = self.attn2(self.norm2(x), context, add=x)
        return self.ff(self.norm3(x), add=x)


class Transformer(Module):
    """x + transformer blocks over its pixels as a sequence of H W tokens: (N, H, W, C) -> (N, H, W, C)."""

    def __init__(self, channels: int, heads: int, cfg: TextUNetConfig, rng: Any):
        def project() -> Linear | Conv2d:  # the same function, with weights of shape (O, I) or (O, 1, 1, I)
            linear = cfg.use_linear_projection
            return Linear(channels, channels, rng) if linear else Conv2d(channels, channels, 1, rng)

        self.norm: GroupNorm = GroupNorm(cfg.norm_num_groups, channels, 1e-6)
        self.proj_in: Linear | Conv2d = project()
        layers = range(cfg.transformer_layers_per_block)
        self.transformer_blocks: list[TransformerBlock] = [TransformerBlock(channels, heads, cfg, rng) for _ in layers]
        self.proj_out: Linear | Conv2d = project()

    def __call__(self, x: Tensor, context: Tensor) -> Tensor:
        N, H, W, C = x.shape
        h = F.reshape(self.proj_in(self.norm(x)), (N, H * W, C))  # (N, T, C)
        for block in self.transformer_blocks:
            h = block(h, context)
        return self.proj_out(F.reshape(h, x.shape), add=x)  # (N, H, W, C)


def down_blocks(cfg: TextUNetConfig, block_cfg: BlockConfig, rng: Any) -> list[DownBlock]:
    """The levels from full to lowest resolution."""
    blocks: list[DownBlock] = []
    channels = cfg.block_out_channels[0]
    last = len(cfg.block_out_channels) - 1
    for i, (block_type, width) in enumerate(zip(cfg.down_block_types, cfg.block_out_channels, strict=True)):
        transformer = partial(Transformer, width, cfg.heads[i], cfg, rng)
        downsample = None if i == last else partial(Downsample, width, 1, rng)
        widths = [channels] + [width] * cfg.layers_per_block
        attention = transformer if block_type == CROSS_DOWN else None
        blocks.append(DownBlock(widths, block_cfg, rng, attention, downsample))
        channels = width
    return blocks


def up_blocks(cfg: TextUNetConfig, block_cfg: BlockConfig, rng: Any) -> list[UpBlock]:
    """The levels from lowest to full resolution."""
    blocks: list[UpBlock] = []
    widths = cfg.block_out_channels
    last = len(widths) - 1
    inputs = up_block_widths(widths[0], widths, cfg.layers_per_block)
    for i, block_type in enumerate(cfg.up_block_types):
        width = widths[last - i]
        transformer = partial(Transformer, width, cfg.heads[last - i], cfg, rng)
        upsample = None if i == last else partial(Upsample, width, rng)
        attention = transformer if block_type == CROSS_UP else None
        blocks.append(UpBlock(inputs[i], width, block_cfg, rng, attention, upsample))
    return blocks


class TextUNet(Module):
    """model_output = unet(x_t, t, cond=text): the prediction of eps, or another target, conditioned on text embeddings.

    config, rng, backend: as for UNet.
    """

    def __init__(self, config: TextUNetConfig, rng: Any, backend: str = "numba"):
        self.config: TextUNetConfig = config
        cfg = config
        width = cfg.block_out_channels[0]
        self.conv_in: Conv2d = Conv2d(cfg.in_channels, width, 3, rng, pad=1)
        self.time_embedding: TimestepEmbedding = TimestepEmbedding(width, cfg.time_embed_dim, rng)

        block_cfg = BlockConfig(cfg.norm_num_groups, cfg.norm_eps, cfg.time_embed_dim, dropout=cfg.dropout)
        lowest = cfg.block_out_channels[-1]
        transformer = partial(Transformer, lowest, cfg.heads[-1], cfg, rng)
        self.down_blocks: list[DownBlock] = down_blocks(cfg, block_cfg, rng)
        self.mid_block: MidBlock = MidBlock(lowest, block_cfg, rng, transformer)
        self.up_blocks: list[UpBlock] = up_blocks(cfg, block_cfg, rng)

        self.conv_norm_out: GroupNorm = GroupNorm(cfg.norm_num_groups, width, cfg.norm_eps)
        self.conv_out: Conv2d = Conv2d(width, cfg.out_channels, 3, rng, pad=1)
        self.move(backend)

    def __call__(self, x_t: Any, t: np.ndarray, cond: Any, rng: Any = None) -> Tensor:
        """The prediction, (N, H, W, out_channels).

        x_t   (N, H, W, C) array or Tensor; downsampling rounds odd H and W up
        t     (N,) int, 0-based, or real between timesteps
        cond  text embeddings (N, S, cross_attention_dim), array or Tensor
        rng   for dropout; None: no dropout
        Raises ValueError if a shape does not match.
        """
        cfg = self.config
        x_t, text = (a if isinstance(a, Tensor) else Tensor(a, self.backend) for a in (x_t, cond))
        self._check(x_t, t, text)
        silu_temb = F.silu(self._temb(t))  # (N, E)
        h = self.conv_in(F.affine(x_t, 2, -1) if cfg.center_input_sample else x_t)
        hs = [h]
        for down in self.down_blocks:
            h = down(h, silu_temb, hs, rng, text)
        h = self.mid_block(h, silu_temb, rng, text)
        for up in self.up_blocks:
            h = up(h, silu_temb, hs, rng, text)
        return self.conv_out(self.conv_norm_out(h, silu=True))

    def _temb(self, t: np.ndarray) -> Tensor:
        cfg = self.config
        sinusoids = timestep_embedding(t, cfg.block_out_channels[0], cfg.flip_sin_to_cos, cfg.freq_shift)
        return self.time_embedding(Tensor(sinusoids, self.backend))

    def _check(self, x_t: Tensor, t: np.ndarray, text: Tensor) -> None:
        cfg = self.config
        if len(x_t.shape) != 4 or x_t.shape[3] != cfg.in_channels:
            raise ValueError(f"x_t has shape {x_t.shape}, the network takes (N, H, W, {cfg.in_channels})")
        N = x_t.shape[0]
        if np.shape(t) != (N,):
            raise ValueError(f"t has shape {np.shape(t)}, x_t holds {N} images: give ({N},)")
        if len(text.shape) != 3 or (text.shape[0], text.shape[2]) != (N, cfg.cross_attention_dim):
            raise ValueError(f"cond has shape {text.shape}: give ({N}, S, {cfg.cross_attention_dim})")
