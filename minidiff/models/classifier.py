"""What a picture shows: a small convolutional network that names its class, and whose last layer but one sees with.

Pictures of one kind lie close together in its features, so distances between sets of pictures are measured there.
"""

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine.nn import Conv2d, GroupNorm, Linear, Module
from minidiff.engine.tensor import Tensor

WIDTHS = (32, 64, 128)
GROUPS, EPS = 8, 1e-5


class Block(Module):
    """Norm, SiLU, conv, twice; + x: (N, H, W, C) -> the same (He et al. 2016, with the norms first)."""

    def __init__(self, channels: int, rng, backend: str):
        self.norm1 = GroupNorm(GROUPS, channels, EPS, backend)
        self.conv1 = Conv2d(channels, channels, 3, rng, backend, pad=1)
        self.norm2 = GroupNorm(GROUPS, channels, EPS, backend)
        self.conv2 = Conv2d(channels, channels, 3, rng, backend, pad=1)

    def __call__(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x, silu=True))
        return self.conv2(self.norm2(h, silu=True), add=x)


class Classifier(Module):
    """logits = classifier(x): which of K classes a picture is of.

    Three convolutions halve it, a residual block follows the first two, and the mean over what pixels are left is
    its features. 0.2 million parameters.

    channels, classes   C and K
    rng                 draws the starting weights; None: they are zeros, to be loaded
    """

    def __init__(self, channels: int, classes: int, rng, backend: str = "numba"):
        inputs = (channels, *WIDTHS)
        self.downs = [Conv2d(i, o, 3, rng, backend, stride=2, pad=1) for i, o in zip(inputs, WIDTHS, strict=False)]
        self.blocks = [Block(width, rng, backend) for width in WIDTHS[:-1]]
        self.norm_out = GroupNorm(GROUPS, WIDTHS[-1], EPS, backend)
        self.out = Linear(WIDTHS[-1], classes, rng, backend)

    def features(self, x: np.ndarray | Tensor) -> Tensor:
        """x (N, H, W, C) in [-1, 1], of any H and W -> (N, 128). Raises ValueError if C is another."""
        h = x if isinstance(x, Tensor) else Tensor(x, self.backend)
        for down, block in zip(self.downs, self.blocks, strict=False):
            h = block(down(h))  # (N, H/2, W/2, 2C)
        h = self.norm_out(self.downs[-1](h), silu=True)  # (N, H/8, W/8, 128)
        return F.mean_pixel(h)

    def __call__(self, x: np.ndarray | Tensor) -> Tensor:
        return self.out(self.features(x))  # (N, K)
