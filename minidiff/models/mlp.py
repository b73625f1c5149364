"""A multilayer perceptron (MLP) that predicts the target (eps, x0, v, ...) of noisy points.

    h = linear_in(SCALE x_t);   h = h + layer(silu(h + temb)) for every layer;   prediction = linear_out(silu(h))

temb is the time embedding of the U-Net (blocks.py), to which a class embedding is added. An MLP learns low frequencies
first (Tancik et al. 2020, arXiv 2006.10739); SCALE lowers those of the data's fine structures.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine.nn import Embedding, Linear, Module
from minidiff.engine.rng import InitRng, Rng
from minidiff.engine.tensor import Tensor
from minidiff.models.blocks import TimestepEmbedding, timestep_embedding
from minidiff.models.config_rules import FileConfig, integer, key, or_none

SINUSOIDS = 32  # channels of the sinusoidal embedding of t
SCALE = 4.0


@dataclass(frozen=True)
class MLPConfig(FileConfig):
    """Architecture of an MLP; diffusers has no class of this kind.

    in_channels       coordinates of a point, D
    hidden_size       channels of the hidden layers
    num_layers        hidden layers
    num_class_embeds  rows of the class embedding, the last for the null class; None: unconditional
    Raises MinidiffError, which names key and value, if a value is not supported.
    """

    CLASS: ClassVar[str] = "MLP"

    in_channels: int = key(2, integer(1, 1024))
    hidden_size: int = key(128, integer(1, 4096))
    num_layers: int = key(4, integer(1, 64))
    num_class_embeds: int | None = key(None, or_none(integer(1, 1_000_000)))


class MLP(Module):
    """prediction = mlp(x_t, t): the prediction of eps, or of x0, v or another target it was trained on.

    config   its architecture; kept as `mlp.config`
    rng      initialises the weights; None: zeros, to be loaded
    backend  of the parameters
    """

    def __init__(self, config: MLPConfig, rng: InitRng, backend: str = "numba"):
        self.config: MLPConfig = config
        width, classes = config.hidden_size, config.num_class_embeds
        self.linear_in: Linear = Linear(config.in_channels, width, rng)
        self.time_embedding: TimestepEmbedding = TimestepEmbedding(SINUSOIDS, width, rng)
        self.class_embedding: Embedding | None = Embedding(classes, width, rng) if classes else None
        self.layers: list[Linear] = [Linear(width, width, rng) for _ in range(config.num_layers)]
        self.linear_out: Linear = Linear(width, config.in_channels, rng)
        self.move(backend)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(1, 1, D), a point as an image of one pixel."""
        return 1, 1, self.config.in_channels

    def __call__(self, x_t: Any, t: np.ndarray, cond: np.ndarray | None = None, rng: Rng | None = None) -> Tensor:
        """The prediction, (N, 1, 1, D).

        x_t   (N, 1, 1, D) array or Tensor
        t     (N,), 0-based
        cond  class labels (N,) int if num_class_embeds is set, else None
        rng   for dropout, which this network does not have
        Raises ValueError if a shape does not match, or labels are missing or unexpected.
        """
        x_t = x_t if isinstance(x_t, Tensor) else Tensor(x_t, self.backend)
        self._check(x_t, t, cond)
        N, _, _, D = x_t.shape
        sinusoids = timestep_embedding(t, SINUSOIDS, flip_sin_to_cos=True, freq_shift=0)  # (N, SINUSOIDS)
        temb = self.time_embedding(Tensor(sinusoids, self.backend))
        if cond is not None and self.class_embedding is not None:
            temb = F.add(temb, self.class_embedding(cond))  # (N, width)
        h = self.linear_in(F.reshape(F.affine(x_t, SCALE), (N, D)))  # (N, width)
        for layer in self.layers:
            h = layer(F.silu(F.add(h, temb)), add=h)
        return F.reshape(self.linear_out(F.silu(h)), (N, 1, 1, D))

    def _check(self, x_t: Tensor, t: np.ndarray, cond: np.ndarray | None) -> None:
        if len(x_t.shape) != 4 or x_t.shape[1:] != self.image_shape:
            raise ValueError(f"x_t has shape {x_t.shape}, the network takes (N, 1, 1, {self.config.in_channels})")
        N = x_t.shape[0]
        if np.shape(t) != (N,):
            raise ValueError(f"t has shape {np.shape(t)}, x_t holds {N} points: give ({N},)")
        if (cond is None) != (self.config.num_class_embeds is None):
            raise ValueError("give cond, class labels, to a network with num_class_embeds, and to no other")
        if cond is not None and np.shape(cond) != (N,):
            raise ValueError(f"cond has shape {np.shape(cond)}, x_t holds {N} points: give ({N},)")


def default_mlp(
    shape: tuple[int, int, int], width: int = 128, depth: int = 4, num_class_embeds: int | None = None
) -> MLPConfig:
    """An MLP for points (1, 1, D), of `depth` hidden layers, each `width` channels wide."""
    return MLPConfig(in_channels=shape[2], hidden_size=width, num_layers=depth, num_class_embeds=num_class_embeds)
