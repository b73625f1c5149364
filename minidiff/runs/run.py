"""A run: a network in training, with all that belongs to it. What differs between networks is told by its kinds.

    UNetRun    a noise predictor, by class or not     (unet_run.py)
    VAERun     an autoencoder                         (vae_run.py)
    TextRun    a noise predictor that hears a text    (text_run.py)

The loop (fit.py), the state on disk (state.py) and the bar are the same for all.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL.Image import Image

from minidiff.data.dataset import Dataset
from minidiff.engine.nn import Parameter
from minidiff.engine.optim import AdamW
from minidiff.errors import MinidiffError
from minidiff.runs.train import StepStats, TrainConfig

Weights = Mapping[str, np.ndarray]


class DamagedPart(MinidiffError):
    """What a run does not train, and keeps beside its states, is missing or another one."""


@dataclass(frozen=True, kw_only=True)
class Run(ABC):
    """What every run has, and what each kind has to tell.

    read_from  the state that it was opened from, where that is not the newest
    """

    NAME: ClassVar[str]  # of what is trained

    folder: Path
    config: TrainConfig
    optimizer: AdamW
    read_from: Path | None = None

    @property
    def step(self) -> int:
        """Steps done."""
        return self.optimizer.step_count

    @property
    def objective(self) -> str | None:
        """The prediction type of what it trains; None for what does not predict from noise."""
        return None

    @property
    @abstractmethod
    def widths(self) -> tuple[int, ...]:
        """The channels of its network's levels."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of its pictures."""

    @classmethod
    @abstractmethod
    def build(cls, folder: Path, config: TrainConfig, *parts: Any, rng: Any) -> Self:
        """The run at step 0 of networks at their random start, or of zeros to be loaded, where rng is None."""

    @classmethod
    @abstractmethod
    def parts_of(cls, folder: Path, config: TrainConfig, metadata: Mapping[str, str]) -> tuple[Any, ...]:
        """What `build` is to be given, of a state's metadata. Raises KeyError, ValueError, MinidiffError."""

    @abstractmethod
    def metadata(self) -> dict[str, str]:
        """The inverse of `parts_of`."""

    @abstractmethod
    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All that is learned, by name, in the optimiser's order."""

    @abstractmethod
    def batches(self, dataset: Dataset) -> Callable[[int], Any]:
        """A function from a step (1, 2, ...) to what is learned in it; it is called in another thread."""

    @abstractmethod
    def learn(self, batch: Any, rng: np.random.Generator) -> StepStats:
        """One step of the optimiser."""

    @abstractmethod
    def probe(self, dataset: Dataset, index: np.ndarray, rng: np.random.Generator) -> float:
        """How wrong the network, as it stands, is on the pictures of these numbers (n,); less is better."""

    def verdict(self, measured: float) -> str:
        """What `probe` said, in words."""
        return f"loss of the averaged weights on fixed images {measured:.4f}"

    @abstractmethod
    def sheet(self, seen: Dataset, held_out: Dataset) -> Image:
        """Pictures that show what the network can do by now, always of the same noise.

        seen is what it learns from, held_out what it is measured on; they may be the same.
        """

    def prepare(self) -> None:  # noqa: B027  most kinds have nothing
        """Write into the folder what will be read from there ever after; before the first state."""

    @abstractmethod
    def export(self, folder: Path, weights: Weights) -> None:
        """Write networks with these weights, by the names of `named_parameters`, for the world outside."""
