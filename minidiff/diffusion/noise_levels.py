"""Where a walk back stops on its way: which timesteps the model is asked at, and how noisy x_t is there."""

from collections.abc import Iterator
from itertools import pairwise
from numbers import Integral
from typing import NamedTuple

import numpy as np

from minidiff.diffusion.continuous import EDM, Flow, karras
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule, Schedule, from_alphas_cumprod, respace
from minidiff.errors import MinidiffError

MAX_STEPS = 1000  # steps of a walk over continuous times
FAINTEST = 2.0**-24  # stands for alphas_cumprod = 0 where sigma would be infinite, as in diffusers


class LevelStep(NamedTuple):
    """A step of a walk, from (t, alpha_bar) to (t_prev, alpha_bar_prev); i counts down to 0."""

    i: int
    t: float
    t_prev: float
    alpha_bar: float
    alpha_bar_prev: float


class NoiseLevels(NamedTuple):
    """The noise levels of a walk.

    ts        (steps,) falling: the model's t at each; whole numbers, or, for walks over sigma, also between them
    schedule  as noisy at its step i as the walk is at ts[-1 - i]
    end       alphas_cumprod where the walk ends: 1, unless the sampler has no clean end
    start     the standard deviation of x_T
    stride    None where each step leads to the next of ts; or the Stride that it takes whatever ts holds
    """

    ts: np.ndarray
    schedule: Schedule
    end: float
    start: float = 1.0
    stride: "Stride | None" = None

    def after(self, begin: int) -> "NoiseLevels":
        """The walk without its first steps. Raises MinidiffError unless 0 <= begin < steps."""
        if not isinstance(begin, Integral) or not 0 <= begin < len(self.ts):
            raise MinidiffError(f"begin must be an integer from 0 to {len(self.ts) - 1}, not {begin!r:.80}")
        if begin == 0:
            return self
        left = from_alphas_cumprod(self.schedule.alphas_cumprod[: len(self.ts) - begin], self.schedule.prediction_type)
        return self._replace(ts=self.ts[begin:], schedule=left)

    def level_steps(self) -> Iterator[LevelStep]:
        """The steps, in order. The t_prev of the last is -1, and of others where the model is asked next."""
        alpha_bar = [self.end, *self.schedule.alphas_cumprod.tolist()]
        for i, (t, t_prev) in zip(reversed(range(len(self.ts))), pairwise([*self.ts.tolist(), -1]), strict=True):
            alpha_bar_prev = self.stride.alpha_bar_prev(t, self.end) if self.stride else alpha_bar[i]
            yield LevelStep(i, t, t_prev, alpha_bar[i + 1], alpha_bar_prev)


class Stride(NamedTuple):
    """diffusers' rule for the timestep that ddim and pndm step to: t - length, with length = T // steps.

    That is the next timestep of "leading"; of other spacings only now and then.
    """

    schedule: Schedule
    length: int

    def alpha_bar_prev(self, t: int, end: float) -> float:
        """alphas_cumprod where a step from t leads; end, if that is before the schedule's first."""
        return float(self.schedule.alphas_cumprod[t - self.length]) if t >= self.length else end


def noise_levels(schedule: AnySchedule, steps: int, sampler: Sampler) -> NoiseLevels:
    """The levels that a sampler visits. Raises MinidiffError for a number of steps that does not go."""
    if not isinstance(schedule, Schedule):
        return _continuous_levels(schedule, steps, sampler)
    T = len(schedule)
    end = 1.0 if sampler.clean_end else float(schedule.alphas_cumprod[0])
    if sampler.name in ("ddpm", "ddim", "pndm"):
        ts = _evenly(T, steps, sampler).round().astype(np.int64)
        follows_ts = sampler.name == "ddpm" or not sampler.as_diffusers
        return NoiseLevels(ts, respace(schedule, ts), end, stride=None if follows_ts else Stride(schedule, T // steps))
    sigmas = sigmas_of(schedule)
    if sampler.name == "dpmpp_2m":
        ts = _without_the_last(T, steps, sampler)
        largest, smallest = sigmas[-1], sigmas[0]
    else:
        ts = _evenly(T, steps, sampler)
        largest, smallest = np.interp(ts[[0, -1]], np.arange(T), sigmas)
    at = np.interp(ts, np.arange(T), sigmas)
    if sampler.karras:
        at = karras(largest, smallest, steps)
        ts = np.interp(np.log(at), np.log(sigmas), np.arange(T))
        ts = ts.round() if sampler.name == "dpmpp_2m" else ts  # which asks at whole timesteps, in diffusers
    alpha_bar = 1 / (1 + at**2)
    # x_T = sigma eps leaves x0 out, which is 0 on average, unless the walk begins within the schedule
    start = 1.0 if sampler.name == "dpmpp_2m" or sampler.spacing == "leading" else float(np.sqrt(1 - alpha_bar[0]))
    whole = ts.astype(np.int64) if np.all(ts == ts.round()) else ts
    return NoiseLevels(whole, from_alphas_cumprod(alpha_bar[::-1], schedule.prediction_type), end, start)


def _continuous_levels(schedule: EDM | Flow, steps: int, sampler: Sampler) -> NoiseLevels:
    """The times of EDM or rectified flow, whichever sampler visits them."""
    if not isinstance(steps, Integral) or not 1 <= steps <= MAX_STEPS:
        raise MinidiffError(f"steps must be an integer from 1 to {MAX_STEPS}, not {steps!r:.80}")
    if sampler.karras:
        raise MinidiffError(f"karras is for schedules over whole timesteps: {schedule.prediction_type} has its own")
    ts = schedule.sampling_times(steps)
    alpha_bar = schedule.alpha_bar(ts)
    if sampler.name == "dpmpp_2m":  # whose steps are over the logarithm of sigma
        alpha_bar = np.maximum(alpha_bar, FAINTEST)
    return NoiseLevels(ts, from_alphas_cumprod(alpha_bar[::-1], schedule.prediction_type), end=1.0)


def timesteps(T: int, steps: int, spacing: str = "trailing", offset: int = 0) -> np.ndarray:
    """(steps,) falling whole timesteps of T, spread in one of three ways (Lin et al. 2024, table 2).

    trailing  every (T / steps)-th, counted down from T - 1
    leading   every (T // steps)-th, counted up from 0, or from `offset`; it never sees the noisiest
    linspace  evenly from T - 1 to 0; a single step is at T - 1

    Raises MinidiffError unless 1 <= steps <= T, for another spacing, and for an offset that leads out of the schedule.
    """
    return _evenly(T, steps, Sampler(spacing=spacing, offset=offset)).round().astype(np.int64)


def max_steps(schedule: AnySchedule, sampler: Sampler) -> int:
    """How many steps the longest walk has."""
    if not isinstance(schedule, Schedule):
        return MAX_STEPS
    T = len(schedule)
    if sampler.spacing == "trailing":
        return T
    return T - (sampler.offset if sampler.spacing == "leading" else 0) - (sampler.name == "dpmpp_2m")


def sigmas_of(schedule: Schedule) -> np.ndarray:
    """(T,) sigma = sqrt((1 - alpha_bar) / alpha_bar): the noise in x_t / sqrt(alpha_bar), which is x0 + sigma eps."""
    alpha_bar = schedule.alphas_cumprod
    alpha_bar = np.where(alpha_bar == 0, FAINTEST, alpha_bar)
    return np.sqrt((1 - alpha_bar) / alpha_bar)


def _evenly(T: int, steps: int, sampler: Sampler) -> np.ndarray:
    """As `timesteps`, but those of linspace are not rounded, and diffusers' single one of them is at 0."""
    if not isinstance(steps, Integral) or not 1 <= steps <= T:
        raise MinidiffError(f"steps must be an integer from 1 to the schedule's {T}, not {steps!r:.80}")
    if sampler.spacing == "trailing":
        return np.arange(T, 0, -T / steps)[:steps].round() - 1  # [:steps]: rounding may add one
    if sampler.spacing == "linspace":
        return np.linspace(0 if steps > 1 or sampler.as_diffusers else T - 1, T - 1, steps)[::-1]
    ts = np.arange(steps)[::-1] * (T // steps) + sampler.offset
    if ts[0] >= T:
        raise MinidiffError(f"steps_offset {sampler.offset} leads beyond the schedule's {T} steps: use fewer --steps")
    return ts.astype(np.float64)


def _without_the_last(T: int, steps: int, sampler: Sampler) -> np.ndarray:
    """DPM-Solver++'s timesteps: of steps + 1 all but the smallest, unless "trailing", where there is none to leave."""
    if sampler.spacing == "trailing":
        return _evenly(T, steps, sampler)
    if not isinstance(steps, Integral) or not 1 <= steps < T:
        raise MinidiffError(f"steps must be an integer from 1 to {T - 1} for dpmpp_2m, not {steps!r:.80}")
    return _evenly(T, steps + 1, sampler).round()[:-1]
