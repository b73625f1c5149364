"""Runs of an MLP on points, unconditional or class-conditional.

RUN/mlp, RUN/scheduler           the averaged weights; diffusers has no class for the network, so no model_index.json
RUN/classes.json                 if it is class-conditional
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL.Image import Image

from minidiff.data.dataset import Dataset
from minidiff.engine.rng import InitRng
from minidiff.files import write_json
from minidiff.formats.networks import save_network, save_scheduler
from minidiff.formats.run_networks import mlp_parts
from minidiff.formats.schedulers import schedule_to_config
from minidiff.models.mlp import MLP
from minidiff.sampling.points import SAMPLER, PointSampler
from minidiff.sampling.points_figure import points_figure
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.unet_run import DenoiserRun
from minidiff.training.run import Weights
from minidiff.training.step import make_optimizer

SHEET_POINTS, SHEET_STEPS = 1000, 25  # of a figure: samples, DDIM steps
# Fields of TrainConfig in which a new run differs from one on images; NumPy compiles nothing, and is as fast here.
CHOICES: dict[str, Any] = {
    "steps": 1500, "batch_size": 256, "lr": 4e-3, "warmup": 100, "ema": 0.995, "backend": "numpy",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PointsRun(DenoiserRun):
    """An MLP in training."""

    NAME: ClassVar[str] = "MLP"
    UNIT: ClassVar[str] = "points"

    mlp: MLP

    @classmethod
    def build(cls, folder: Path, config: TrainConfig, *parts: Any, rng: InitRng) -> Self:
        """parts: the network's configuration, and the schedule."""
        network, schedule = parts
        mlp = MLP(network, rng, config.backend)
        optimizer = make_optimizer(mlp.named_parameters(), config)
        return cls(folder=folder, config=config, optimizer=optimizer, mlp=mlp, schedule=schedule)

    @classmethod
    def parts_of(cls, folder: Path, config: TrainConfig, metadata: Mapping[str, str]) -> tuple[Any, ...]:
        return mlp_parts(metadata)

    def metadata(self) -> dict[str, str]:
        return {
            "mlp": json.dumps(self.mlp.config.to_dict()),
            "schedule": json.dumps(schedule_to_config(self.schedule)),
        }

    @property
    def network(self) -> MLP:
        return self.mlp

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.mlp.config.hidden_size,) * self.mlp.config.num_layers

    def sheet(self, train_set: Dataset, held_out: Dataset) -> Image:
        """The figure of `points_figure`, of held-out points and samples by DDIM, class after class."""
        n, classes = SHEET_POINTS, len(self.config.classes)
        labels = np.arange(n) * classes // n if classes else None
        net = PointSampler(self.model, self.schedule, classes or None, steps=SHEET_STEPS)
        rng = np.random.default_rng([self.config.seed, 0])
        return points_figure(net, held_out, net.trajectories((n, *self.shape), rng, labels), labels)

    def export(self, folder: Path, weights: Weights) -> None:
        save_network(folder / "mlp", self.mlp.config.to_dict(), weights)
        save_scheduler(folder, self.schedule, SAMPLER)
        if self.config.classes:
            write_json(folder / "classes.json", list(self.config.classes))
