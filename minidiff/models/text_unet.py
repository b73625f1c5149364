"""The noise predictor that listens to text: Stable Diffusion's U-Net, diffusers' UNet2DConditionModel.

Rombach et al. 2022 (arXiv:2112.10752), section 3.3. The U-Net of DDPM, in which every attention has become a
transformer block: pixels look at one another, then at the words of the text, then each thinks for itself.
Attributes are named as diffusers names them.
"""

from functools import partial

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine.nn import Conv2d, GroupNorm, LayerNorm, Linear, Module
from minidiff.engine.tensor import Tensor
from minidiff.models.blocks import (
    DownBlock,
    Downsample,
    Kind,
    MidBlock,
    TimestepEmbedding,
    UpBlock,
    Upsample,
    skip_widths,
    timestep_embedding,
)
from minidiff.models.latent_config import TextUNetConfig


class Attention(Module):
    """What each of x (N, T, C) takes from all of `heard` (N, S, D), plus x."""

    def __init__(self, channels: int, heard: int, heads: int, rng, backend: str):
        self.heads = heads
        self.to_q = Linear(channels, channels, rng, backend, bias=False)
        self.to_k = Linear(heard, channels, rng, backend, bias=False)
        self.to_v = Linear(heard, channels, rng, backend, bias=False)
        self.to_out = [Linear(channels, channels, rng, backend)]

    def __call__(self, x: Tensor, heard: Tensor, add: Tensor) -> Tensor:
        q, k, v = self.to_q(x), self.to_k(heard), self.to_v(heard)
        q, k, v = (F.reshape(a, (*a.shape[:2], self.heads, -1)) for a in (q, k, v))  # (N, T, heads, C / heads)
        return self.to_out[0](F.reshape(F.attention(q, k, v), x.shape), add=add)


class GEGLU(Module):
    """One half of a linear layer, let through by the other: h gelu(gate) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, inputs: int, outputs: int, rng, backend: str):
        self.proj = Linear(inputs, 2 * outputs, rng, backend)

    def __call__(self, x: Tensor) -> Tensor:
        h, gate = F.split(self.proj(x))
        return F.mul(h, F.gelu(gate))  # (N, T, outputs)


class FeedForward(Module):
    """Four times as wide, through a gate, and back. In the middle of diffusers' list is a dropout."""

    def __init__(self, channels: int, rng, backend: str):
        self.net = [GEGLU(channels, 4 * channels, rng, backend), None, Linear(4 * channels, channels, rng, backend)]

    def __call__(self, x: Tensor, add: Tensor) -> Tensor:
        return self.net[2](self.net[0](x), add=add)


class TransformerBlock(Module):
    """Attention to one another, to the text, and a feed-forward net; each normalised first and added."""

    def __init__(self, channels: int, heads: int, cfg: TextUNetConfig, rng, backend: str):
        self.norm1 = LayerNorm(channels, 1e-5, backend)
        self.attn1 = Attention(channels, channels, heads, rng, backend)
        self.norm2 = LayerNorm(channels, 1e-5, backend)
        self.attn2 = Attention(channels, cfg.cross_attention_dim, heads, rng, backend)
        self.norm3 = LayerNorm(channels, 1e-5, backend)
        self.ff = FeedForward(channels, rng, backend)

    def __call__(self, x: Tensor, text: Tensor) -> Tensor:
        own = self.norm1(x)
        x = self.attn1(own, own, add=x)
        x = self.attn2(self.norm2(x), text, add=x)
        return self.ff(self.norm3(x), add=x)


class Transformer(Module):
    """The pixels of a picture as a row of tokens, through transformer blocks, and added to it: (N, H, W, C)."""

    def __init__(self, channels: int, heads: int, cfg: TextUNetConfig, rng, backend: str):
        def project() -> Linear | Conv2d:  # the same numbers, under two shapes of weights
            linear = cfg.use_linear_projection
            return Linear(channels, channels, rng, backend) if linear else Conv2d(channels, channels, 1, rng, backend)

        self.norm = GroupNorm(cfg.norm_num_groups, channels, 1e-6, backend)
        self.proj_in = project()
        layers = range(cfg.transformer_layers_per_block)
        self.transformer_blocks = [TransformerBlock(channels, heads, cfg, rng, backend) for _ in layers]
        self.proj_out = project()

    def __call__(self, x: Tensor, text: Tensor) -> Tensor:
        N, H, W, C = x.shape
        h = F.reshape(self.proj_in(self.norm(x)), (N, H * W, C))  # (N, T, C)
        for block in self.transformer_blocks:
            h = block(h, text)
        return self.proj_out(F.reshape(h, x.shape), add=x)  # (N, H, W, C)


class TextUNet(Module):
    """eps_hat = unet(x_t, t, cond=text): what noise is in x_t, if it is a picture of that?

    config, rng and backend as of UNet.
    """

    def __init__(self, config: TextUNetConfig, rng, backend: str = "numba"):
        cfg = self.config = config
        widths, last = cfg.block_out_channels, len(cfg.block_out_channels) - 1
        self.conv_in = Conv2d(cfg.in_channels, widths[0], 3, rng, backend, pad=1)
        self.time_embedding = TimestepEmbedding(widths[0], cfg.time_embed_dim, rng, backend)

        kind = Kind(cfg.norm_num_groups, cfg.norm_eps, cfg.time_embed_dim, dropout=cfg.dropout)

        def attend(level: int, name: str = "CrossAttn"):
            make = partial(Transformer, widths[level], cfg.heads[level], cfg, rng, backend)
            return make if name.startswith("CrossAttn") else None

        self.down_blocks, h = [], widths[0]
        for i, (name, width) in enumerate(zip(cfg.down_block_types, widths, strict=True)):
            inputs = [h] + [width] * cfg.layers_per_block
            halve = None if i == last else partial(Downsample, width, 1, rng, backend)
            self.down_blocks.append(DownBlock(inputs, kind, rng, backend, attend(i, name), halve))
            h = width
        self.mid_block = MidBlock(h, kind, rng, backend, attend(last))
        self.up_blocks = []
        inputs = skip_widths(widths[0], widths, cfg.layers_per_block)
        for i, name in enumerate(cfg.up_block_types):
            level = last - i
            double = None if i == last else partial(Upsample, widths[level], rng, backend)
            made = UpBlock(inputs[i], widths[level], kind, rng, backend, attend(level, name), double)
            self.up_blocks.append(made)

        self.conv_norm_out = GroupNorm(cfg.norm_num_groups, widths[0], cfg.norm_eps, backend)
        self.conv_out = Conv2d(widths[0], cfg.out_channels, 3, rng, backend, pad=1)

    def __call__(self, x_t, t: np.ndarray, cond, rng=None) -> Tensor:
        """eps_hat (N, H, W, out_channels).

        x_t   (N, H, W, C) array or Tensor; halves of odd H and W are rounded up
        t     (N,) numbers, 0-based
        cond  the text's embeddings (N, S, cross_attention_dim), array or Tensor
        rng   draws dropout; without it there is none
        Raises ValueError if a shape does not fit.
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
            raise ValueError(f"t has shape {np.shape(t)}, x_t holds {N} pictures: give ({N},)")
        if len(text.shape) != 3 or (text.shape[0], text.shape[2]) != (N, cfg.cross_attention_dim):
            raise ValueError(f"cond has shape {text.shape}: give ({N}, S, {cfg.cross_attention_dim})")
