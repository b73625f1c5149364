"""LoRA: low-rank updates of a trained network's weights (Hu et al. 2021, arXiv:2106.09685).

The weight W (O, I) of a layer stays as it is. Trained is what is added to it, a matrix of rank r at most:

    h = W x + (alpha / r) B A x        A (r, I), B (O, r)        (eq. 3, with the scale of section 4.1)

These are r (O + I) parameters in place of O I. A is initialised from a Gaussian and B with zeros, so that training
starts from the network as it is. Of a convolution, A (r, K, K, I) is one to r channels, and B a 1x1 convolution.

During training the layer computes both products (`LoRALayer`). To sample, W + (alpha / r) B A is computed once
(`merged`), which makes an update cost nothing.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from minidiff.engine import functional as F
from minidiff.engine.nn import Conv2d, Linear, Module, Parameter
from minidiff.engine.rng import InitRng
from minidiff.engine.tensor import Tensor

# Query, key, value and output projections, as the U-Net and the text encoder name them.
ATTENTION = re.compile(r"\.(to_[qkv]|to_out\.0|[qkv]_proj|out_proj)$")
# The same of the text encoder, and of the U-Net those of cross-attention alone.
TEXT = re.compile(r"\.(attn2\.(to_[qkv]|to_out\.0)|[qkv]_proj|out_proj)$")
PROJECTIONS = {"attention": ATTENTION, "text": TEXT}


@dataclass(frozen=True)
class Update:
    """The low-rank update of one weight: A (r, I), of a convolution (r, K, K, I), and B (O, r), float32."""

    A: np.ndarray
    B: np.ndarray
    alpha: float

    @property
    def rank(self) -> int:
        """r."""
        return len(self.A)

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / self.rank

    def product(self) -> np.ndarray:
        """(alpha / r) B A, of the shape of the weight: (O, I) or (O, K, K, I)."""
        BA = self.B @ self.A.reshape(self.rank, -1)  # (O, I) or (O, K K I)
        return np.float32(self.scale) * BA.reshape(len(self.B), *self.A.shape[1:])


class LoRALayer(Module):
    """A layer with an update in training: h = layer(x) + (alpha / r) B A x. The layer itself is not trained."""

    def __init__(self, layer: Linear | Conv2d, rank: int, alpha: float, rng: InitRng):
        O, *rest = layer.weight.shape  # rest: (I,) or (K, K, I)
        A = np.zeros((rank, *rest), np.float32)
        if rng is not None:
            A += rng.standard_normal(A.shape) / rank
        self.layer: Linear | Conv2d = layer
        self.A: Parameter = Parameter(A, layer.backend)
        self.B: Parameter = Parameter(np.zeros((O, rank), np.float32), layer.backend)
        self.scale: float = alpha / rank

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        layer = self.layer
        if self.scale == 0:
            return layer(x, add)
        convolves = isinstance(layer, Conv2d)
        Ax = F.conv2d(x, self.A, None, layer.stride, layer.pad) if convolves else F.linear(x, self.A)  # (..., r)
        return F.linear(F.affine(Ax, self.scale), self.B, add=layer(x, add))  # (..., O)


def updatable_layers(network: Module) -> dict[str, Linear | Conv2d]:
    """The linear and convolution layers of a network, by name: those that an update can belong to.

    A layer that has an update in training goes by the name that it has without.
    """
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, Linear | Conv2d)}
    return {name.removesuffix(".layer"): layer for name, layer in layers.items()}


def add_updates(
    network: Module, rank: int, alpha: float, rng: InitRng, named: re.Pattern[str] = ATTENTION
) -> dict[str, LoRALayer]:
    """Give the attention projections of a network an update to train, in place; all its own weights are frozen.

    rng    initialises A; None: zeros
    named  matches the end of their names
    Returns the new layers, by the names of those that they take the place of.
    """
    for p in network.parameters():
        p.requires_grad = False
    chosen = {name: layer for name, layer in updatable_layers(network).items() if named.search(name)}
    added = {name: LoRALayer(layer, rank, alpha, rng) for name, layer in chosen.items()}
    for name, layer in added.items():
        _replace(network, name, layer)
    return added


def _replace(network: Module, name: str, layer: LoRALayer) -> None:
    """Put a layer in the place of the one of that name: an attribute, or an entry of a list."""
    *parents, last = name.split(".")
    place = network
    for parent in parents:
        place = place[int(parent)] if isinstance(place, list) else getattr(place, parent)
    if isinstance(place, list):
        place[int(last)] = layer
    else:
        setattr(place, last, layer)


@contextmanager
def without_updates(layers: Iterable[LoRALayer]) -> Iterator[None]:
    """Within this block layers with updates in training compute what they do without: W x."""
    scales = {layer: layer.scale for layer in layers}
    try:
        for layer in scales:
            layer.scale = 0.0
        yield
    finally:
        for layer, scale in scales.items():
            layer.scale = scale


@contextmanager
def merged(
    layers: Mapping[str, Linear | Conv2d], loras: Iterable[tuple[Mapping[str, Update], float]]
) -> Iterator[None]:
    """Within this block the layers' weights are W + sum of weight (alpha / r) B A over all loras (updates, weight).

    The layers hold their own weights again afterwards, bit for bit: copies are kept. 16-bit weights are merged in
    float32 and rounded again.
    """
    differences: dict[str, np.ndarray] = {}
    for updates, weight in loras:
        for name, update in updates.items():
            differences[name] = differences.get(name, 0) + np.float32(weight) * update.product()
    parameters = {name: layers[name].weight for name in differences}
    kept = {name: p.data.copy() for name, p in parameters.items()}
    try:
        for name, p in parameters.items():
            p.fill(p.backend.asarray(p.numpy()) + p.backend.asarray(differences[name]))
        yield
    finally:
        for name, p in parameters.items():
            p.data[...] = kept[name]
