"""A run: a network in training with its configuration and optimiser. Each kind of network has a subclass.

    UNetRun        a U-Net, unconditional or class-conditional    (kinds/unet_run.py)
    VAERun         an autoencoder                                 (kinds/vae_run.py)
    TextRun        a text-conditional U-Net                       (kinds/text_run.py)
    ClassifierRun  a classifier of noisy images                   (kinds/classifier_run.py)
    PointsRun      an MLP on points                               (kinds/points_run.py)
    LoRARun        low-rank updates of a text pipeline            (kinds/lora_run.py)
    TextualInversionRun   a word's embedding for a text pipeline  (kinds/textual_inversion_run.py)

The loop (loop.py), the state on disk (state.py) and the progress bar are the same for all.
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
from minidiff.engine.rng import InitRng
from minidiff.training.config import TrainConfig
from minidiff.training.step import StepStats

Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Run(ABC):
    """What all runs have, and what each kind implements.

    restored_from  the state file that it was opened from, if that is not the newest
    """

    NAME: ClassVar[str]  # of the trained network, for messages
    UNIT: ClassVar[str] = "images"  # what a batch holds, for messages

    folder: Path
    config: TrainConfig
    optimizer: AdamW
    restored_from: Path | None = None

    @property
    def step(self) -> int:
        """Steps done."""
        return self.optimizer.step_count

    @property
    def objective(self) -> str | None:
        """The prediction type of what it trains; None for an autoencoder or a classifier."""
        return None

    @property
    @abstractmethod
    def widths(self) -> tuple[int, ...]:
        """The channels of its network's levels."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of its images."""

    @classmethod
    @abstractmethod
    def build(cls, folder: Path, config: TrainConfig, *parts: Any, rng: InitRng) -> Self:
        """The run at step 0 of networks at their random start, or of zeros to be loaded, where rng is None."""

    @classmethod
    @abstractmethod
    def parts_of(cls, folder: Path, config: TrainConfig, metadata: Mapping[str, str]) -> tuple[Any, ...]:
        """The parts that `build` takes, from a state's metadata. Raises KeyError, ValueError or MinidiffError."""

    @abstractmethod
    def metadata(self) -> dict[str, str]:
        """The inverse of `parts_of`."""

    @abstractmethod
    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """The trained parameters by name, in the optimiser's order."""

    @abstractmethod
    def batches(self, dataset: Dataset) -> Callable[[int], Any]:
        """A function from a step (1, 2, ...) to its batch; it is called in another thread."""

    @abstractmethod
    def train_batch(self, batch: Any, rng: np.random.Generator) -> StepStats:
        """One optimiser step on a batch; rng draws all of the step's noise."""

    @abstractmethod
    def validation_loss(self, dataset: Dataset, index: np.ndarray, rng: np.random.Generator) -> float:
        """The loss with the current weights on the images of these indices (n,); lower is better."""

    def describe_validation(self, loss: float) -> str:
        """A validation loss in words, for the console."""
        return f"loss of the averaged weights on fixed {self.UNIT} {loss:.4f}"

    @abstractmethod
    def sheet(self, train_set: Dataset, held_out: Dataset) -> Image:
        """A sheet of images that shows the network's current quality, always from the same noise.

        held_out is the validation set, which may be the training set.
        """

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of the state beside the optimiser's, by name; opening a run reads them in place."""
        return {}

    def prepare(self) -> None:  # noqa: B027  most kinds write nothing
        """Write the frozen parts into the folder, before the first state; later they are read from there."""

    @abstractmethod
    def export(self, folder: Path, weights: Weights) -> None:
        """Write the networks with these weights, by the names of `named_parameters`, as diffusers reads them."""
