"""Building blocks of U-Nets and autoencoders: residual blocks, down- and upsampling, levels with attention.

Attributes are named as in diffusers, so a checkpoint's keys are the parameter names used here.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine.fused.norm_conv import norm_conv
from minidiff.engine.fused.upsample_conv import upsample_conv
from minidiff.engine.nn import Conv2d, GroupNorm, Linear, Module
from minidiff.engine.rng import InitRng, Rng
from minidiff.engine.tensor import Tensor


class BlockConfig(NamedTuple):
    """The settings that all residual blocks of a network share."""

    groups: int  # of the group normalisations
    eps: float  # added to their variance
    temb: int | None = None  # channels of the time embedding; None: no time embedding
    scale_shift: bool = False  # the time embedding scales and shifts instead of being added
    dropout: float = 0.0  # probability


def timestep_embedding(t: np.ndarray, width: int, flip_sin_to_cos: bool, freq_shift: float) -> np.ndarray:
    """Sinusoidal embedding of t (Vaswani et al. 2017, section 3.5): (N,) -> (N, width) float32.

    sin and cos of t * 10000^(-i / (width/2 - freq_shift)), i = 0, 1, ... width/2 - 1; all sines first, or all cosines
    first if flip_sin_to_cos. An odd width ends with a 0.
    """
    half = width // 2
    frequency = np.exp(-math.log(10000) * np.arange(half) / (half - freq_shift))
    angle = np.asarray(t, np.float64)[:, None] * frequency  # (N, half)
    sines = np.sin(angle)
    cosines = np.cos(angle)
    parts = (cosines, sines) if flip_sin_to_cos else (sines, cosines)
    return np.pad(np.concatenate(parts, 1), ((0, 0), (0, width % 2))).astype(np.float32)


class TimestepEmbedding(Module):
    """Linear, SiLU, linear: sinusoids (N, inputs) -> time embedding temb (N, outputs)."""

    def __init__(self, inputs: int, outputs: int, rng: InitRng):
        self.linear_1: Linear = Linear(inputs, outputs, rng)
        self.linear_2: Linear = Linear(outputs, outputs, rng)

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class ResnetBlock(Module):
    """Norm, SiLU, conv, + temb; norm, SiLU, dropout, conv; + x: (N, H, W, inputs) -> (N, H, W, outputs).

    With cfg.scale_shift temb scales and shifts the output of norm2 instead (Dhariwal & Nichol 2021, section 3).
    resample   avg_pool or upsample_nearest, applied to x and to the input of the first conv; None: neither
    """

    def __init__(
        self, inputs: int, outputs: int, cfg: BlockConfig, rng: InitRng, resample: Callable[..., Any] | None = None
    ):
        temb_outputs = 2 * outputs if cfg.scale_shift else outputs
        self.norm1: GroupNorm = GroupNorm(cfg.groups, inputs, cfg.eps)
        self.conv1: Conv2d = Conv2d(inputs, outputs, 3, rng, pad=1)
        self.time_emb_proj: Linear | None = Linear(cfg.temb, temb_outputs, rng) if cfg.temb else None
        self.norm2: GroupNorm = GroupNorm(cfg.groups, outputs, cfg.eps)
        self.conv2: Conv2d = Conv2d(outputs, outputs, 3, rng, pad=1)
        self.conv_shortcut: Conv2d | None = None if inputs == outputs else Conv2d(inputs, outputs, 1, rng)
        self.scale_shift: bool = cfg.scale_shift
        self.dropout: float = cfg.dropout
        self.resample: Callable[..., Any] | None = resample

    def __call__(self, x: Tensor, silu_temb: Tensor | None = None, rng: Rng | None = None) -> Tensor:
        temb = scale = shift = None
        if self.time_emb_proj is not None and silu_temb is not None:
            temb = self.time_emb_proj(silu_temb)
            temb = F.reshape(temb, (temb.shape[0], 1, 1, -1))  # (N, 1, 1, O), or 2 O with scale_shift
            if self.scale_shift:
                scale, shift = F.split(temb)
                temb = None
        if self.resample:
            h, x = self.resample(self.norm1(x, silu=True)), self.resample(x)
            h = self.conv1(h, add=temb)
        else:
            h = norm_conv(self.norm1, self.conv1, x, add=temb)
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        if scale is not None and shift is not None:
            h = F.silu(F.add(F.mul(self.norm2(h), F.affine(scale, 1, 1)), shift))  # silu(norm2(h) (1 + scale) + shift)
        elif rng is None or not self.dropout:
            return norm_conv(self.norm2, self.conv2, h, add=shortcut, overwrite=shortcut is not x)
        else:
            h = self.norm2(h, silu=True)
        return self.conv2(F.dropout(h, self.dropout, rng), add=shortcut)


class Downsample(Module):
    """3x3 convolution with stride 2. padding 0 pads at the bottom and right only, as DDPM did."""

    def __init__(self, channels: int, padding: int, rng: InitRng):
        pad = (0, 1, 0, 1) if padding == 0 else (padding,) * 4
        self.conv: Conv2d = Conv2d(channels, channels, 3, rng, stride=2, pad=pad)

    def __call__(self, x: Tensor) -> Tensor:
        return self.conv(x)  # (N, H/2, W/2, C), rounded up if padding is 1, else down


class Upsample(Module):
    """Nearest-neighbour upsampling by 2, then a 3x3 convolution.

    size  (H', W') to crop to before the convolution, where downsampling rounded up; None: no cropping
    """

    def __init__(self, channels: int, rng: InitRng):
        self.conv: Conv2d = Conv2d(channels, channels, 3, rng, pad=1)

    def __call__(self, x: Tensor, size: tuple[int, ...] | None = None) -> Tensor:
        return upsample_conv(self.conv, x, size)  # (N, 2H, 2W, C) or (N, H', W', C)


def attend(attention: Any, h: Tensor, text: Tensor | None) -> Tensor:
    """Self-attention, or with text embeddings (N, S, D) a transformer that attends to them too; h (N, H, W, C)."""
    return attention(h) if text is None else attention(h, text)


class DownBlock(Module):
    """One level of the down path; the output of every layer is pushed on hs.

    attentions    one after each residual block, or none
    downsamplers  the level's last layer; none at the lowest level
    """

    def __init__(
        self, resnets: list[ResnetBlock], attentions: list[Any], downsamplers: list[Downsample] | list[ResnetBlock]
    ):
        self.resnets: list[ResnetBlock] = resnets
        self.attentions: list[Any] = attentions
        self.downsamplers: list[Downsample] | list[ResnetBlock] = downsamplers

    def __call__(
        self, h: Tensor, silu_temb: Tensor, hs: list[Tensor], text: Tensor | None = None, rng: Rng | None = None
    ) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, silu_temb, rng)  # (N, H, W, C)
            if self.attentions:
                h = attend(self.attentions[i], h, text)
            hs.append(h)
        for layer in self.downsamplers:
            h = layer(h, silu_temb, rng) if isinstance(layer, ResnetBlock) else layer(h)  # (N, H/2, W/2, C)
            hs.append(h)
        return h


class MidBlock(Module):
    """Residual block, attention or none, residual block: (N, H, W, C) -> same; each output is divided by `divisor`."""

    def __init__(self, attentions: list[Any], resnets: list[ResnetBlock], divisor: float = 1):
        self.attentions: list[Any] = attentions
        self.resnets: list[ResnetBlock] = resnets
        self.scale: float = 1 / divisor

    def __call__(
        self, h: Tensor, silu_temb: Tensor | None = None, text: Tensor | None = None, rng: Rng | None = None
    ) -> Tensor:
        h = F.affine(self.resnets[0](h, silu_temb, rng), self.scale)
        for attention in self.attentions:
            h = F.affine(attend(attention, h, text), self.scale)
        return F.affine(self.resnets[1](h, silu_temb, rng), self.scale)


class UpBlock(Module):
    """One level of the up path; every residual block's input is concatenated with an entry popped from hs.

    attentions  one after each residual block, or none
    upsamplers  the level's last layer; none at full resolution
    """

    def __init__(
        self, resnets: list[ResnetBlock], attentions: list[Any], upsamplers: list[Upsample] | list[ResnetBlock]
    ):
        self.resnets: list[ResnetBlock] = resnets
        self.attentions: list[Any] = attentions
        self.upsamplers: list[Upsample] | list[ResnetBlock] = upsamplers

    def __call__(
        self, h: Tensor, silu_temb: Tensor, hs: list[Tensor], text: Tensor | None = None, rng: Rng | None = None
    ) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            h = resnet(F.concat(h, hs.pop()), silu_temb, rng)  # (N, H, W, C)
            if self.attentions:
                h = attend(self.attentions[i], h, text)
        for layer in self.upsamplers:
            size = hs[-1].shape[1:3]  # of the next level's skip connection
            h = layer(h, silu_temb, rng) if isinstance(layer, ResnetBlock) else layer(h, size)  # (N, 2H, 2W, C)
        return h


def up_block_inputs(widths: tuple[int, ...], layers: int) -> list[list[int]]:
    """Input channels of every residual block of the up path, per level, full resolution first.

    Each is the channels of the previous layer plus those of the popped entry of hs. hs holds conv_in's output, of
    widths[0] channels, then per level of the down path the outputs of its `layers` residual blocks and of its
    downsampling.
    """
    pushed = [widths[0]]
    for i, width in enumerate(widths):
        pushed += [width] * (layers + (i < len(widths) - 1))
    h = widths[-1]
    inputs: list[list[int]] = []
    for width in reversed(widths):
        inputs.append([])
        for _ in range(layers + 1):
            inputs[-1].append(h + pushed.pop())
            h = width
    return inputs[::-1]
