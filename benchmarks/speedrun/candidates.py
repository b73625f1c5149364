"""What the speedrun compares beside the recipes of `minidiff train`: candidates and sampling settings, by name.

A name never changes its meaning: a changed candidate gets a new name, so that every row of the ledger can be trained
again. A candidate differs from the first one, `short`, in what its line says. What the library learns later, another
optimiser or other layers, comes in the same way: as a field of TrainConfig, as a key of the network's configuration, or
as a schedule.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from splits import CLASSES, SHAPE

from minidiff.diffusion.continuous import EDM, Flow
from minidiff.diffusion.guidance import ALWAYS, guided
from minidiff.diffusion.model import Model
from minidiff.diffusion.noise_levels import time_of
from minidiff.diffusion.reverse import last_x_t, no_model, sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule, cosine_schedule
from minidiff.engine.optim import half_life
from minidiff.engine.rng import Rng
from minidiff.errors import MinidiffError
from minidiff.models.config import UNetConfig
from minidiff.models.default_configs import default_config
from minidiff.training import recipes
from minidiff.training.recipes import Recipe, Shape

MOST_EVALUATIONS = 50  # of the model, for an image
SMALL = recipes.RECIPES["small-cpu"]
# small-cpu in a sixth of its steps: warm-up and half-life of the EMA are as large a part of the run as there.
SHORT = replace(SMALL, choices=SMALL.choices | {"warmup": 80, "ema": half_life(220)})


def _but(**choices: Any) -> Recipe:
    """SHORT with other fields of TrainConfig."""
    return replace(SHORT, choices=SHORT.choices | choices)


def _predicting(schedule: AnySchedule) -> Recipe:
    """SHORT with another prediction target and timestep distribution."""
    return replace(SHORT, schedule=schedule)


def _of_size(width: int, depth: int | None = None) -> Recipe:
    """SHORT with another width, or number of levels too."""

    def network(shape: Shape, num_class_embeds: int | None) -> UNetConfig:
        return default_config(shape, width, num_class_embeds, depth)

    return replace(SHORT, network=network)


CANDIDATES = {
    "short": SHORT,
    # prediction target and timestep distribution
    "flow": _predicting(Flow()),
    "x0": _predicting(cosine_schedule(1000, prediction_type="sample")),
    "edm": _predicting(EDM()),
    "min-snr": _but(min_snr=5.0),
    # optimiser
    "batch-32": _but(batch_size=32, warmup=160, ema=half_life(440)),
    "lr-2e-3": _but(lr=2e-3),
    "lr-3e-3": _but(lr=3e-3),
    "lr-5e-4": _but(lr=5e-4),
    "muon-3e-3": _but(optimizer="muon", lr=3e-3),
    "muon-6e-3": _but(optimizer="muon", lr=6e-3),
    "muon-3e-3-stratified": _but(optimizer="muon", lr=3e-3, stratified=True),
    "beta2-999": _but(beta2=0.999),
    "label-dropout-2": _but(label_dropout=0.02),
    # network
    "width-24": _of_size(24),
    "width-48": _of_size(48),
    "depth-3": _of_size(32, depth=3),
}


def find(name: str) -> Recipe:
    """The recipe or the candidate of that name. Raises MinidiffError if there is neither."""
    known = recipes.RECIPES | CANDIDATES
    if name not in known:
        raise MinidiffError(f"--recipe {name}: choose from {', '.join(known)}")
    return known[name]


def cost(name: str) -> tuple[UNetConfig, int, str]:
    """What the time of a training step depends on: the network, the batch size and the optimiser."""
    recipe = find(name)
    return recipe.network(SHAPE, CLASSES + 1), recipe.choices["batch_size"], recipe.choices.get("optimizer", "adamw")


@dataclass(frozen=True)
class Sampling:
    """Sampling settings.

    guidance  scale of classifier-free guidance; 1 is none
    interval  sigmas (lowest, highest) between which it is applied; None: all
    """

    sampler: Sampler
    steps: int
    guidance: float = 1.0
    interval: tuple[float, float] | None = None

    def images(self, model: Model, schedule: AnySchedule, labels: np.ndarray, classes: int, rng: Rng, shape: Shape):
        """Samples (n, H, W, C), float32, of labels (n,)."""
        if self.guidance != 1:
            low, high = (time_of(schedule, sigma) for sigma in self.interval) if self.interval else ALWAYS
            model = guided(model, classes, self.guidance, interval=(low, high))
        return last_x_t(sample(model, schedule, (len(labels), *shape), rng, self.steps, self.sampler, labels))

    def evaluations(self, schedule: AnySchedule) -> int:
        """Evaluations of the model for an image, counted while one is sampled; a guided step has two."""
        count = 0

        def model(x_t: np.ndarray, t: np.ndarray, cond: Any = None) -> np.ndarray:
            nonlocal count
            count += len(x_t)
            return no_model(x_t, t)

        self.images(model, schedule, np.zeros(1, int), 1, np.random.default_rng(0), (1, 1, 1))
        return count


DDIM, DPM, HEUN = Sampler("ddim"), Sampler("dpmpp_2m"), Sampler("heun")
SAMPLINGS = {
    "ddim-25": Sampling(DDIM, 25),
    "ddim-50": Sampling(DDIM, 50),  # the default of minidiff sample and evaluate
    "ddim-25-guided-1.5": Sampling(DDIM, 25, 1.5),
    "ddim-29-guided-1.5-inside": Sampling(DDIM, 29, 1.5, (0.3, 5.0)),
    "ddim-29-guided-2-inside": Sampling(DDIM, 29, 2.0, (0.3, 5.0)),
    "dpmpp-20": Sampling(DPM, 20),
    "dpmpp-20-karras": Sampling(replace(DPM, karras=True), 20),
    "dpmpp-50-karras": Sampling(replace(DPM, karras=True), 50),
    "heun-25-karras": Sampling(replace(HEUN, karras=True), 25),
    "heun-25": Sampling(HEUN, 25),
}


def find_sampling(name: str, schedule: AnySchedule) -> Sampling:
    """The sampling settings of that name.

    Raises MinidiffError if there are none, or if they take more than MOST_EVALUATIONS with this schedule.
    """
    if name not in SAMPLINGS:
        raise MinidiffError(f"--sampling {name}: choose from {', '.join(SAMPLINGS)}")
    count = SAMPLINGS[name].evaluations(schedule)
    if count > MOST_EVALUATIONS:
        raise MinidiffError(f"--sampling {name}: evaluates the model {count} times, at most {MOST_EVALUATIONS} count")
    return SAMPLINGS[name]
