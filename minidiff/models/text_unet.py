"""Stable Diffusion's text-conditional U-Net, diffusers' UNet2DConditionModel.

Rombach et al. 2022 (arXiv:2112.10752), section 3.3. DDPM's U-Net with transformer blocks in place of self-attention:
self-attention among the pixels, cross-attention to the text embeddings, a position-wise feed-forward network.
Attributes are named as in diffusers.
"""

from typing import Any, ClassVar

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine.fused.geglu_linear import geglu_linear
from minidiff.engine.nn import Conv2d, GroupNorm, LayerNorm, Linear, Module
from minidiff.engine.rng import InitRng, Rng
from minidiff.engine.tensor import Tensor
from minidiff.models.config import TextUNetConfig
from minidiff.models.unet import AnyUNet


class Attention(Module):
    """Multi-head attention from x (N, T, C) to context (N, S, D), + add (N, T, C) -> (N, T, C)."""

    def __init__(self, channels: int, context_width: int, heads: int, rng: InitRng):
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
    """A linear layer to h and gate, side by side: the input of h gelu(gate) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, inputs: int, outputs: int, rng: InitRng):
        self.proj: Linear = Linear(inputs, 2 * outputs, rng)

    def __call__(self, x: Tensor) -> Tensor:
        return self.proj(x)  # (N, T, 2 outputs)


class FeedForward(Module):
    """Position-wise feed-forward network with GEGLU and 4 C hidden channels, + add: (N, T, C) -> (N, T, C)."""

    def __init__(self, channels: int, rng: InitRng):
        geglu = GEGLU(channels, 4 * channels, rng)
        linear = Linear(4 * channels, channels, rng)
        self.net: list[Any] = [geglu, None, linear]  # diffusers has a dropout at index 1

    def __call__(self, x: Tensor, add: Tensor) -> Tensor:
        return geglu_linear(self.net[0](x), self.net[2].weight, self.net[2].bias, add)


class TransformerBlock(Module):
    """Self-attention, cross-attention, feed-forward network, each x + f(layer_norm(x)).

    x (N, T, C), context (N, S, D) -> (N, T, C).
    """

    def __init__(self, channels: int, heads: int, cfg: TextUNetConfig, rng: InitRng):
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

    def __init__(self, channels: int, heads: int, cfg: TextUNetConfig, rng: InitRng):
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


class TextUNet(AnyUNet[TextUNetConfig]):
    """model_output = unet(x_t, t, cond=text): the prediction of eps, or another target, conditioned on text embeddings.

    config, rng, backend: as for UNet.
    """

    SIDE: ClassVar[int] = 64

    def __call__(self, x_t: Any, t: np.ndarray, cond: Any, rng: Rng | None = None) -> Tensor:
        """The prediction, (N, H, W, out_channels).

        x_t   (N, H, W, C) array or Tensor; downsampling rounds odd H and W up
        t     (N,) int, 0-based, or real between timesteps
        cond  text embeddings (N, S, cross_attention_dim), array or Tensor
        rng   for dropout; None: no dropout
        Raises ValueError if a shape does not match.
        """
        x_t, text = (a if isinstance(a, Tensor) else Tensor(a, self.backend) for a in (x_t, cond))
        self._check_images(x_t, t)
        N, D = x_t.shape[0], self.config.cross_attention_dim
        if len(text.shape) != 3 or (text.shape[0], text.shape[2]) != (N, D):
            raise ValueError(f"cond has shape {text.shape}: give ({N}, S, {D})")
        return self._predict(x_t, self._temb(t), text, rng)

    def _attention(self, level: int, rng: InitRng) -> Transformer:
        cfg = self.config
        return Transformer(cfg.block_out_channels[level], cfg.heads[level], cfg, rng)
