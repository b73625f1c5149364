"""A small convolutional image classifier, whose intermediate features serve the image metrics.

The metrics compare the features of inner layers. Those of the last layer separate the classes and little else: to
them a blurred cat looks like any other.
"""

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine.nn import Conv2d, GroupNorm, Linear, Module
from minidiff.engine.pooling import global_avg_pool
from minidiff.engine.rng import InitRng
from minidiff.engine.tensor import Tensor

WIDTHS = (16, 32, 64, 128)  # channels at full resolution, 1/2, 1/4 and 1/8
GROUPS, EPS = 8, 1e-5


class DownsampleBlock(Module):
    """Norm, SiLU, 3x3 convolution with stride 2: (N, H, W, inputs) -> (N, H/2, W/2, outputs), rounded up."""

    def __init__(self, inputs: int, outputs: int, rng: InitRng):
        self.norm = GroupNorm(GROUPS, inputs, EPS)
        self.conv = Conv2d(inputs, outputs, 3, rng, stride=2, pad=1)

    def __call__(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x, silu=True))


class ResidualBlock(Module):
    """Residual block: norm, SiLU, conv, twice; + x (He et al. 2016, "Identity Mappings in Deep Residual Networks")."""

    def __init__(self, channels: int, rng: InitRng):
        self.norm1 = GroupNorm(GROUPS, channels, EPS)
        self.conv1 = Conv2d(channels, channels, 3, rng, pad=1)
        self.norm2 = GroupNorm(GROUPS, channels, EPS)
        self.conv2 = Conv2d(channels, channels, 3, rng, pad=1)

    def __call__(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x, silu=True))
        return self.conv2(self.norm2(h, silu=True), add=x)


class Classifier(Module):
    """logits = classifier(x): image classification with 0.2 million parameters.

    channels, classes   C and K
    rng                 initialises the weights; None: zeros, to be loaded
    """

    def __init__(self, channels: int, classes: int, rng: InitRng, backend: str = "numba"):
        self.conv_in = Conv2d(channels, WIDTHS[0], 3, rng, pad=1)
        self.downsamplers = [DownsampleBlock(i, o, rng) for i, o in zip(WIDTHS, WIDTHS[1:], strict=False)]
        self.blocks = [ResidualBlock(width, rng) for width in WIDTHS[1:-1]]
        self.norm_out = GroupNorm(GROUPS, WIDTHS[-1], EPS)
        self.out = Linear(WIDTHS[-1], classes, rng)
        self.move(backend)

    def features_and_logits(self, x: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, 96), the residual blocks' outputs averaged over all pixels, and logits (N, K).

        x (N, H, W, C) in [-1, 1], of any H and W. Raises ValueError if C differs.
        """
        h = self.conv_in(x if isinstance(x, Tensor) else Tensor(x, self.backend))  # (N, H, W, 16)
        features = []
        for downsample, block in zip(self.downsamplers, self.blocks, strict=False):
            h = block(downsample(h))  # (N, H/2, W/2, 32), then (N, H/4, W/4, 64)
            features.append(global_avg_pool(h))
        h = self.norm_out(self.downsamplers[-1](h), silu=True)  # (N, H/8, W/8, 128)
        return F.concat(*features), self.out(global_avg_pool(h))

    def __call__(self, x: np.ndarray | Tensor) -> Tensor:
        return self.features_and_logits(x)[1]  # (N, K)
