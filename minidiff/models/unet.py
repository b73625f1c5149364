"""The noise predictor: the U-Net of DDPM (Ho et al. 2020, appendix B), as diffusers' UNet2DModel builds it.

Down: residual blocks, every output pushed on the stack hs, a halving at the end of each level but the last.
Middle: residual, attention, residual. Up: the mirror image, every block taking one of hs back in.
The time t enters every residual block, as a sinusoidal embedding passed through a small network.
Attributes are named as diffusers names them, so the keys of a checkpoint are the names used here.
"""

import math

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine.nn import Conv2d, Embedding, GroupNorm, Linear, Module, SelfAttention
from minidiff.engine.tensor import Tensor
from minidiff.models.config import UNetConfig


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

    The time is added, or scales and shifts what norm2 gives (Dhariwal & Nichol 2021, section 3), as cfg says.
    resample   F.avg_pool or F.upsample_nearest: what halves or doubles H and W, of x too, before the first conv
    """

    def __init__(self, inputs: int, outputs: int, cfg: UNetConfig, rng, backend: str, resample=None):
        groups, eps = cfg.norm_num_groups, cfg.norm_eps
        self.norm1 = GroupNorm(groups, inputs, eps, backend)
        self.conv1 = Conv2d(inputs, outputs, 3, rng, backend, pad=1)
        self.time_emb_proj = Linear(cfg.time_embed_dim, outputs * (2 if cfg.scale_shift else 1), rng, backend)
        self.norm2 = GroupNorm(groups, outputs, eps, backend)
        self.conv2 = Conv2d(outputs, outputs, 3, rng, backend, pad=1)
        self.conv_shortcut = None if inputs == outputs else Conv2d(inputs, outputs, 1, rng, backend)
        self.scale_shift, self.dropout, self.resample = cfg.scale_shift, cfg.dropout, resample

    def __call__(self, x: Tensor, silu_temb: Tensor, rng=None) -> Tensor:
        h = self.norm1(x, silu=True)
        if self.resample:
            h, x = self.resample(h), self.resample(x)
        temb = self.time_emb_proj(silu_temb)
        temb = F.reshape(temb, (temb.shape[0], 1, 1, -1))  # (N, 1, 1, O), twice as many for scale and shift
        if self.scale_shift:
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
    """Nearest neighbour, then a 3x3 convolution. It takes no notice of what a residual block in its place is given."""

    def __init__(self, channels: int, rng, backend: str):
        self.conv = Conv2d(channels, channels, 3, rng, backend, pad=1)

    def __call__(self, x: Tensor, *_) -> Tensor:
        return self.conv(F.upsample_nearest(x))  # (N, 2H, 2W, C)


class DownBlock(Module):
    """One level on the way down; every output is also pushed on hs."""

    def __init__(self, inputs: int, outputs: int, kind: str, last: bool, cfg: UNetConfig, rng, backend: str):
        widths = [inputs] + [outputs] * cfg.layers_per_block
        self.resnets = [ResnetBlock(i, o, cfg, rng, backend) for i, o in zip(widths, widths[1:], strict=False)]
        self.attentions = (
            [attention_of(outputs, cfg, rng, backend, cfg.norm_num_groups) for _ in self.resnets]
            if "Attn" in kind
            else []
        )
        if last:
            self.downsamplers = []
        elif resamples_in_resnet(kind, cfg.downsample_type):
            self.downsamplers = [ResnetBlock(outputs, outputs, cfg, rng, backend, F.avg_pool)]
        else:
            self.downsamplers = [Downsample(outputs, cfg.downsample_padding, rng, backend)]

    def __call__(self, h: Tensor, silu_temb: Tensor, hs: list[Tensor], rng=None) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, silu_temb, rng)
            if self.attentions:
                h = self.attentions[i](h)
            hs.append(h)
        for downsample in self.downsamplers:
            h = downsample(h, silu_temb, rng)
            hs.append(h)
        return h


class MidBlock(Module):
    """Residual, attention (unless the configuration has none), residual; each divided by mid_block_scale_factor."""

    def __init__(self, channels: int, cfg: UNetConfig, rng, backend: str):
        groups = cfg.attn_norm_num_groups or (None if cfg.scale_shift else cfg.norm_num_groups)
        self.attentions = [attention_of(channels, cfg, rng, backend, groups)] if cfg.add_attention else []
        self.resnets = [ResnetBlock(channels, channels, cfg, rng, backend) for _ in range(2)]
        self.scale = 1 / cfg.mid_block_scale_factor

    def __call__(self, h: Tensor, silu_temb: Tensor, rng=None) -> Tensor:
        h = F.affine(self.resnets[0](h, silu_temb, rng), self.scale)
        for attention in self.attentions:
            h = F.affine(attention(h), self.scale)
        return F.affine(self.resnets[1](h, silu_temb, rng), self.scale)


class UpBlock(Module):
    """One level on the way up; every residual block takes one of hs back in, beside its own input."""

    def __init__(self, widths: list[int], outputs: int, kind: str, last: bool, cfg: UNetConfig, rng, backend: str):
        self.resnets = [ResnetBlock(width, outputs, cfg, rng, backend) for width in widths]
        self.attentions = (
            [attention_of(outputs, cfg, rng, backend, cfg.norm_num_groups) for _ in widths] if "Attn" in kind else []
        )
        if last:
            self.upsamplers = []
        elif resamples_in_resnet(kind, cfg.upsample_type):
            self.upsamplers = [ResnetBlock(outputs, outputs, cfg, rng, backend, F.upsample_nearest)]
        else:
            self.upsamplers = [Upsample(outputs, rng, backend)]

    def __call__(self, h: Tensor, silu_temb: Tensor, hs: list[Tensor], rng=None) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            h = resnet(F.concat(h, hs.pop()), silu_temb, rng)
            if self.attentions:
                h = self.attentions[i](h)
        for upsample in self.upsamplers:
            h = upsample(h, silu_temb, rng)
        return h


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

        pushed = [widths[0]]  # the channels of everything on hs, in order
        self.down_blocks, h = [], widths[0]
        for i, (kind, width) in enumerate(zip(cfg.down_block_types, widths, strict=True)):
            last = i == len(widths) - 1
            self.down_blocks.append(DownBlock(h, width, kind, last, cfg, rng, backend))
            pushed += [width] * (cfg.layers_per_block + (not last))
            h = width

        self.mid_block = MidBlock(h, cfg, rng, backend)

        self.up_blocks = []
        for i, (kind, width) in enumerate(zip(cfg.up_block_types, reversed(widths), strict=True)):
            inputs = []
            for _ in range(cfg.layers_per_block + 1):
                inputs.append(h + pushed.pop())
                h = width
            last = i == len(widths) - 1
            self.up_blocks.append(UpBlock(inputs, width, kind, last, cfg, rng, backend))

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
