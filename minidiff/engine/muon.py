"""Muon for the weight matrices of the hidden layers, AdamW for all other parameters, over the same flat buffers."""

from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

import numpy as np

from minidiff.engine.nn import Parameter
from minidiff.engine.optim import AdamW

FIRST_AND_LAST = ("conv_in", "conv_out", "linear_in", "linear_out")


class Muon(AdamW):
    """Muon (Jordan et al. 2024): the momentum of each weight matrix is orthogonalised before the weights follow it.

    named     a network's `named_parameters()`: `is_hidden` says which are updated by Muon, the others are by AdamW
    lr        of both: Muon's update has about the root mean square of AdamW's
    momentum  Muon's decay of the gradients' mean
    adamw     betas, eps, weight_decay, clip and ema, as AdamW takes them; betas and eps are for AdamW's parameters
    m holds the momentum of both; v stays zero in Muon's matrices. Raises ValueError and MinidiffError as AdamW.
    """

    def __init__(self, named: Iterable[tuple[str, Parameter]], lr: float, momentum: float = 0.95, **adamw: Any):
        named = list(named)
        super().__init__([p for _, p in named], lr, **adamw)
        self.momentum = momentum
        self.matrices: np.ndarray = _matrices(named)  # (M, 3)

    def _update(self, norm: Any, clip: float, ema_decay: float) -> None:
        self.backend.muon(
            self.p, self.g, self.m, self.ema, self.matrices, norm, clip,
            self.lr, self.momentum, self.weight_decay, ema_decay,
        )  # fmt: skip
        for place in _between(self.matrices, len(self.p)):
            self._adamw(place, norm, clip, ema_decay)


def is_hidden(name: str, p: Parameter) -> bool:
    """Whether it is the weight of a convolution or linear layer, not the network's first or last, nor an embedding."""
    layer = name.split(".")[-2:-1]
    inside = all(not (part in FIRST_AND_LAST or part.endswith("embedding")) for part in layer)
    return len(p.shape) in (2, 4) and inside


def _matrices(named: Iterable[tuple[str, Parameter]]) -> np.ndarray:
    """The hidden weights in the flat buffers: the first index, O and K of each, (M, 3) int64."""
    rows, end = [], 0
    for name, p in named:
        first, end = end, end + prod(p.shape)
        if is_hidden(name, p):
            rows.append((first, p.shape[0], prod(p.shape[1:])))
    return np.array(rows, np.int64).reshape(-1, 3)


def _between(matrices: np.ndarray, size: int) -> Iterator[slice]:
    """The parts of flat buffers of that size before, between and after the matrices."""
    firsts, ends = matrices[:, 0], matrices[:, 0] + matrices[:, 1] * matrices[:, 2]
    for start, stop in zip([0, *ends.tolist()], [*firsts.tolist(), size], strict=True):
        if start < stop:
            yield slice(start, stop)
