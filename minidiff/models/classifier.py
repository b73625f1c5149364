"""Small convolutional classifiers: of images, for the features that metrics compare; of noisy images, for guidance.

The metrics compare the features of inner layers. Those of the last layer separate the classes and little else: to
them a blurred cat looks like any other.
"""

import math

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine.fused.norm_conv import norm_conv
from minidiff.engine.nn import Conv2d, GroupNorm, Linear, Module
from minidiff.engine.pooling import global_avg_pool
from minidiff.engine.rng import InitRng
from minidiff.engine.tensor import Tensor
from minidiff.models.blocks import BlockConfig, Downsample, ResnetBlock, TimestepEmbedding, timestep_embedding
from minidiff.models.config import ClassifierConfig

WIDTHS = (16, 32, 64, 128)  # channels at full resolution, 1/2, 1/4 and 1/8
GROUPS, EPS = 8, 1e-5
SINUSOIDS, TEMB = 32, 128  # channels of the noise level's sinusoids and of its embedding


class DownsampleBlock(Module):
    """Norm, SiLU, 3x3 convolution with stride 2: (N, H, W, inputs) -> (N, H/2, W/2, outputs), rounded up."""

    def __init__(self, inputs: int, outputs: int, rng: InitRng):
        self.norm = GroupNorm(GROUPS, inputs, EPS)
        self.conv = Conv2d(inputs, outputs, 3, rng, stride=2, pad=1)

    def __call__(self, x: Tensor) -> Tensor:
        return norm_conv(self.norm, self.conv, x)


class ResidualBlock(Module):
    """Residual block: norm, SiLU, conv, twice; + x (He et al. 2016, "Identity Mappings in Deep Residual Networks")."""

    def __init__(self, channels: int, rng: InitRng):
        self.norm1 = GroupNorm(GROUPS, channels, EPS)
        self.conv1 = Conv2d(channels, channels, 3, rng, pad=1)
        self.norm2 = GroupNorm(GROUPS, channels, EPS)
        self.conv2 = Conv2d(channels, channels, 3, rng, pad=1)

    def __call__(self, x: Tensor) -> Tensor:
        h = norm_conv(self.norm1, self.conv1, x)
        return norm_conv(self.norm2, self.conv2, h, add=x)


class Classifier(Module):
    """logits = classifier(x): image classification, with 0.2 million parameters at the default widths.

    channels, classes   C and K
    rng                 initialises the weights; None: zeros, to be loaded
    widths              channels at full resolution, 1/2, 1/4 and 1/8: multiples of 8
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        rng: InitRng,
        backend: str = "numba",
        widths: tuple[int, int, int, int] = WIDTHS,
    ):
        self.conv_in = Conv2d(channels, widths[0], 3, rng, pad=1)
        self.downsamplers = [DownsampleBlock(i, o, rng) for i, o in zip(widths, widths[1:], strict=False)]
        self.blocks = [ResidualBlock(width, rng) for width in widths[1:-1]]
        self.norm_out = GroupNorm(GROUPS, widths[-1], EPS)
        self.out = Linear(widths[-1], classes, rng)
        self.move(backend)

    def features_and_logits(self, x: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, widths[1] + widths[2]), 96 by default, and logits (N, K).

        The features are the residual blocks' outputs averaged over all pixels.

        x (N, H, W, C) in [-1, 1], of any H and W. Raises ValueError if C differs.
        """
        h = self.conv_in(x if isinstance(x, Tensor) else Tensor(x, self.backend))  # (N, H, W, widths[0])
        features = []
        for downsample, block in zip(self.downsamplers, self.blocks, strict=False):
            h = block(downsample(h))  # (N, H/2, W/2, widths[1]), then (N, H/4, W/4, widths[2])
            features.append(global_avg_pool(h))
        h = self.norm_out(self.downsamplers[-1](h), silu=True)  # (N, H/8, W/8, widths[3])
        return F.concat(*features), self.out(global_avg_pool(h))

    def __call__(self, x: np.ndarray | Tensor) -> Tensor:
        return self.features_and_logits(x)[1]  # (N, K)


class NoisyClassifier(Module):
    """logits = classifier(x_t, alpha_bar): which class a noisy image is of, with 0.4 million parameters.

    Residual blocks as in the U-Net's down path, without attention (Dhariwal & Nichol 2021, section 4.1, have it). The
    noise level is embedded as the angle arccos(sqrt(alpha_bar)), not as a timestep: x_t and alpha_bar mean the same in
    every schedule, so that one classifier serves them all.
    rng initialises the weights; None: zeros, to be loaded.
    """

    def __init__(self, config: ClassifierConfig, rng: InitRng, backend: str = "numba"):
        cfg = BlockConfig(GROUPS, EPS, TEMB)
        self.config: ClassifierConfig = config
        self.conv_in: Conv2d = Conv2d(config.in_channels, WIDTHS[0], 3, rng, pad=1)
        self.time_embedding: TimestepEmbedding = TimestepEmbedding(SINUSOIDS, TEMB, rng)
        self.downsamplers: list[Downsample] = [Downsample(width, 1, rng) for width in WIDTHS[:-1]]
        self.resnets: list[ResnetBlock] = [
            ResnetBlock(i, o, cfg, rng) for i, o in zip(WIDTHS, WIDTHS[1:], strict=False)
        ]
        self.norm_out: GroupNorm = GroupNorm(GROUPS, WIDTHS[-1], EPS)
        self.out: Linear = Linear(WIDTHS[-1], len(config.classes), rng)
        self.move(backend)

    def __call__(self, x_t: np.ndarray | Tensor, alpha_bar: np.ndarray) -> Tensor:
        """Logits (N, K) of x_t (N, H, W, C), of any H and W, at the noise levels alpha_bar (N,), from 0 to 1."""
        angle = np.arccos(np.sqrt(alpha_bar)) * 2 / math.pi  # 0: the image, 1: noise
        sinusoids = timestep_embedding(1000 * angle, SINUSOIDS, True, 0)  # (N, SINUSOIDS)
        silu_temb = F.silu(self.time_embedding(Tensor(sinusoids, self.backend)))  # (N, TEMB)
        h = self.conv_in(x_t if isinstance(x_t, Tensor) else Tensor(x_t, self.backend))  # (N, H, W, 16)
        for downsample, resnet in zip(self.downsamplers, self.resnets, strict=True):
            h = resnet(downsample(h), silu_temb)  # (N, H/2, W/2, 32), ... (N, H/8, W/8, 128), rounded up
        return self.out(global_avg_pool(self.norm_out(h, silu=True)))  # (N, K)
