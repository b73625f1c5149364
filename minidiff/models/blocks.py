"""What U-Nets and autoencoders are built of: residual blocks, halving and doubling, levels with attention.

Attributes are named as diffusers names them, so the keys of a checkpoint are the names used here.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine.nn import Conv2d, GroupNorm, Linear, Module
from minidiff.engine.tensor import Tensor

Make = Callable[[], Callable[..., Tensor]]  # makes a layer


class Kind(NamedTuple):
    """What all residual blocks of a network have in common."""

    groups: int  # of the normalisations
    eps: float  # keeps their variance from zero
    temb: int | None = None  # channels of the time embedding, if there is one
    scale_shift: bool = False  # whether the time scales and shifts
    dropout: float = 0.0  # the probability of zero


def timestep_embedding(t: np.ndarray, width: int, flip_sin_to_cos: bool, freq_shift: float) -> np.ndarray:
    """Sines and cosines of t at geometric frequencies (Vaswani et al. 2017, section 3.5): (N,) -> (N, width).

    frequency_i = 10000^(-i / (width/2 - freq_shift)); sines come first unless flip_sin_to_cos.
    """
    half = width // 2
    frequency = np.exp(-math.log(10000) * np.arange(half) / (half - freq_shift))
    angle = np.asarray(t, np.float64)[:, None] * frequency  # (N, half)
    halves = (np.cos(angle), np.sin(angle)) if flip_sin_to_cos else (np.sin(angle), np.cos(angle))
    return np.pad(np.concatenate(halves, 1), ((0, 0), (0, width % 2))).astype(np.float32)


class TimestepEmbedding(Module):
    """Linear, SiLU, Linear: the sinusoids become temb (N, outputs)."""

    def __init__(self, inputs: int, outputs: int, rng, backend: str):
        self.linear_1 = Linear(inputs, outputs, rng, backend)
        self.linear_2 = Linear(outputs, outputs, rng, backend)

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class ResnetBlock(Module):
    """Norm, SiLU, conv, the time; norm, SiLU, dropout, conv; + x: (N, H, W, inputs) -> (N, H, W, outputs).

    The time is added, or scales and shifts what norm2 gives (Dhariwal & Nichol 2021, section 3), as its kind says; or
    there is none.
    resample   avg_pool or upsample_nearest: what halves or doubles H and W, of x too, before the first conv
    """

    def __init__(self, inputs: int, outputs: int, kind: Kind, rng, backend: str, resample=None):
        groups, eps, temb = kind.groups, kind.eps, kind.temb
        self.norm1 = GroupNorm(groups, inputs, eps, backend)
        self.conv1 = Conv2d(inputs, outputs, 3, rng, backend, pad=1)
        self.time_emb_proj = Linear(temb, outputs * (2 if kind.scale_shift else 1), rng, backend) if temb else None
        self.norm2 = GroupNorm(groups, outputs, eps, backend)
        self.conv2 = Conv2d(outputs, outputs, 3, rng, backend, pad=1)
        self.conv_shortcut = None if inputs == outputs else Conv2d(inputs, outputs, 1, rng, backend)
        self.scale_shift, self.dropout, self.resample = kind.scale_shift, kind.dropout, resample

    def __call__(self, x: Tensor, silu_temb: Tensor | None = None, rng=None, *_) -> Tensor:
        h = self.norm1(x, silu=True)
        if self.resample:
            h, x = self.resample(h), self.resample(x)
        temb = None
        if self.time_emb_proj is not None and silu_temb is not None:
            temb = self.time_emb_proj(silu_temb)
            temb = F.reshape(temb, (temb.shape[0], 1, 1, -1))  # (N, 1, 1, O), twice as many for scale and shift
        if temb is not None and self.scale_shift:
            scale, shift = F.split(temb)
            h = self.norm2(self.conv1(h))
            h = F.silu(F.add(F.mul(h, F.affine(scale, 1, 1)), shift))  # silu(h (1 + scale) + shift)
        else:
            h = self.norm2(self.conv1(h, add=temb), silu=True)
        h = F.dropout(h, self.dropout, rng)
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return self.conv2(h, add=shortcut)


class Downsample(Module):
    """A 3x3 convolution with stride 2. padding 0 pads below and to the right only, as DDPM did.

    It takes no notice of the time and the dropout that a residual block in its place is given.
    """

    def __init__(self, channels: int, padding: int, rng, backend: str):
        pad = (0, 1, 0, 1) if padding == 0 else (padding,) * 4
        self.conv = Conv2d(channels, channels, 3, rng, backend, stride=2, pad=pad)

    def __call__(self, x: Tensor, *_) -> Tensor:
        return self.conv(x)  # (N, H/2, W/2, C)


class Upsample(Module):
    """Nearest neighbour, then a 3x3 convolution. It takes no notice of the time and the dropout.

    size  (H', W') to which what is doubled is cut, for pictures whose halves were rounded up
    """

    def __init__(self, channels: int, rng, backend: str):
        self.conv = Conv2d(channels, channels, 3, rng, backend, pad=1)

    def __call__(self, x: Tensor, silu_temb: Tensor | None = None, rng=None, size=None) -> Tensor:
        return self.conv(F.upsample_nearest(x, size))  # (N, 2H, 2W, C)


class DownBlock(Module):
    """One level on the way down; every output is also pushed on hs.

    attend  makes the attention behind each residual block, if there is to be one; it is given what hears, such as text
    halve   makes what comes last, unless it is the last level
    """

    def __init__(
        self,
        widths: list[int],
        kind: Kind,
        rng,
        backend: str,
        attend: Make | None = None,
        halve: Make | None = None,
    ):
        self.resnets = [ResnetBlock(i, o, kind, rng, backend) for i, o in zip(widths, widths[1:], strict=False)]
        self.attentions = [attend() for _ in self.resnets] if attend else []
        self.downsamplers = [halve()] if halve else []

    def __call__(self, h: Tensor, silu_temb: Tensor, hs: list[Tensor], rng=None, *text: Tensor) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, silu_temb, rng)
            if self.attentions:
                h = self.attentions[i](h, *text)
            hs.append(h)
        for downsample in self.downsamplers:
            h = downsample(h, silu_temb, rng)
            hs.append(h)
        return h


class MidBlock(Module):
    """Residual, attention (if there is to be one), residual; each divided by `divisor`."""

    def __init__(
        self,
        channels: int,
        kind: Kind,
        rng,
        backend: str,
        attend: Make | None = None,
        divisor: float = 1,
    ):
        self.attentions = [attend()] if attend else []
        self.resnets = [ResnetBlock(channels, channels, kind, rng, backend) for _ in range(2)]
        self.scale = 1 / divisor

    def __call__(self, h: Tensor, silu_temb: Tensor | None = None, rng=None, *text: Tensor) -> Tensor:
        h = F.affine(self.resnets[0](h, silu_temb, rng), self.scale)
        for attention in self.attentions:
            h = F.affine(attention(h, *text), self.scale)
        return F.affine(self.resnets[1](h, silu_temb, rng), self.scale)


class UpBlock(Module):
    """One level on the way up; every residual block takes one of hs back in, beside its own input.

    widths of these inputs; attend and double as in DownBlock.
    """

    def __init__(
        self,
        widths: list[int],
        outputs: int,
        kind: Kind,
        rng,
        backend: str,
        attend: Make | None = None,
        double: Make | None = None,
    ):
        self.resnets = [ResnetBlock(width, outputs, kind, rng, backend) for width in widths]
        self.attentions = [attend() for _ in widths] if attend else []
        self.upsamplers = [double()] if double else []

    def __call__(self, h: Tensor, silu_temb: Tensor, hs: list[Tensor], rng=None, *text: Tensor) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            h = resnet(F.concat(h, hs.pop()), silu_temb, rng)
            if self.attentions:
                h = self.attentions[i](h, *text)
        for upsample in self.upsamplers:
            h = upsample(h, silu_temb, rng, hs[-1].shape[1:3])  # the size of what the next level takes back
        return h


def skip_widths(first: int, widths: tuple[int, ...], layers: int) -> list[list[int]]:
    """The channels of the inputs of every residual block on the way up, level by level.

    Each is the sum of what comes from below and what hs gives back: of conv_in `first` channels, then, of each level on
    the way down, as many as it has layers and one more of its halving.
    """
    pushed = [first]
    for i, width in enumerate(widths):
        pushed += [width] * (layers + (i < len(widths) - 1))
    h, inputs = widths[-1], []
    for width in reversed(widths):
        inputs.append([])
        for _ in range(layers + 1):
            inputs[-1].append(h + pushed.pop())
            h = width
    return inputs
