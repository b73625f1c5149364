"""Sampling of points: whole trajectories, and the score of the model."""

from dataclasses import dataclass

import numpy as np

from minidiff.diffusion.model import Model
from minidiff.diffusion.noise_levels import noise_levels
from minidiff.diffusion.reverse import Tick, sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule
from minidiff.engine.rng import Rng

SAMPLER = Sampler(clip=2.0)  # of a new run: all points of data/points.py lie within [-2, 2]
UNCLIPPED = Sampler(clip=None)  # for the score


@dataclass(frozen=True)
class PointSampler:
    """A model of points (N, 1, 1, D), and how it is sampled.

    model    predicts from (x_t, t), and from labels as cond unless null is None
    null     the null class of a class-conditional model
    sampler  with its number of steps
    """

    model: Model
    schedule: AnySchedule
    null: int | None
    sampler: Sampler = SAMPLER
    steps: int = 50

    def trajectories(
        self, shape: tuple[int, int, int, int], rng: Rng, labels: np.ndarray | None, tick: Tick = lambda: None
    ) -> np.ndarray:
        """Every x_t of the sampling loop, from noise to the samples: (steps + 1, N, 1, 1, D).

        rng draws x_T, then fresh noise; tick() is called after every step.
        """
        start = noise_levels(self.schedule, self.steps, self.sampler).start
        x_T = np.float32(start) * rng.standard_normal(shape, dtype=np.float32)
        states = [x_T]
        for _, x_t, _ in sample(self.model, self.schedule, shape, rng, self.steps, self.sampler, labels, x_T):
            states.append(x_t)
            tick()
        return np.stack(states)

    @property
    def noise(self) -> np.ndarray:
        """sqrt(1 - alpha_bar) at the beginning of each step of `score`, falling: (steps,)."""
        alphas_cumprod = noise_levels(self.schedule, self.steps, UNCLIPPED).schedule.alphas_cumprod
        return np.sqrt(1 - alphas_cumprod[::-1])

    def score(self, x_t: np.ndarray, step: int, label: int | None = None) -> np.ndarray:
        """The score grad log q(x_t) by the model, at the noise level at which sampling takes step 0, 1, ...

        (sqrt(alpha_bar) x0_hat - x_t) / (1 - alpha_bar), in x_t's shape (Tweedie's formula).
        label: of a class-conditional model; None: the null class
        """
        label = self.null if label is None else label
        cond = None if label is None else np.full(len(x_t), label)
        rng = np.random.default_rng()  # not drawn from: DDIM is deterministic, and x_t is given
        loop = sample(self.model, self.schedule, x_t.shape, rng, self.steps, UNCLIPPED, cond, x_t, begin=step)
        _, _, x0_hat = next(loop)
        variance = self.noise[step] ** 2
        return (np.float32(np.sqrt(1 - variance)) * x0_hat - x_t) / np.float32(variance)
