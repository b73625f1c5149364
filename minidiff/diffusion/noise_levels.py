"""The noise levels of sampling: timestep spacing, sigmas, and alpha_bar at each sampler step."""

import math
from collections.abc import Iterator
from itertools import pairwise
from numbers import Integral
from typing import NamedTuple

import numpy as np

from minidiff.diffusion.continuous import EDM, Flow, karras
from minidiff.diffusion.sampler import CONSISTENCY_SAMPLER, LOG_SIGMA, Sampler
from minidiff.diffusion.schedule import AnySchedule, Schedule, from_alphas_cumprod, respace
from minidiff.errors import MinidiffError

MAX_STEPS = 1000  # sampling steps of a continuous schedule
DPM_SOLVERS = ("dpmpp_2m", "dpmpp_2m_sde", "unipc")  # whose timesteps diffusers spaces and rounds by another rule
NEEDS_FINITE_SIGMA = (*DPM_SOLVERS, "dpmpp_sde", "euler_maruyama")
MAX_CONSISTENCY_STEPS = 50  # as many as diffusers' LCMScheduler has by default
FIRST_SIGMA = 25.0  # of consistency sampling: pure noise stands for an image at this noise level
MIN_ALPHA_BAR = 2.0**-24  # replaces alphas_cumprod = 0, where sigma would be infinite, as in diffusers


class SamplerStep(NamedTuple):
    """A sampler step from (t, alpha_bar) to (t_prev, alpha_bar_prev); i counts down to 0."""

    i: int
    t: float
    t_prev: float
    alpha_bar: float
    alpha_bar_prev: float


class Level(NamedTuple):
    """A noise level: the model's t there, alpha_bar, and the schedule whose timestep i has it."""

    t: float
    alpha_bar: float
    schedule: Schedule
    i: int


class NoiseLevels(NamedTuple):
    """The noise levels of a sampling loop.

    ts        (steps,) falling: the model's t at each level; integers, or, for samplers over sigma, fractions too
    schedule  has at its timestep i the noise level of ts[-1 - i]
    end       alpha_bar after the last step: 1, unless the sampler has clean_end=False
    trained   the schedule of the model's training
    start     the standard deviation of x_T
    stride    the Stride by which alpha_bar_prev is chosen; None if it is that of the next of ts
    sigma_hat (steps,) rising: the sigmas to which EDM's churn raises those of the schedule; None without churn
    """

    ts: np.ndarray
    schedule: Schedule
    end: float
    trained: AnySchedule
    start: float = 1.0
    stride: "Stride | None" = None
    sigma_hat: np.ndarray | None = None

    def from_step(self, begin: int) -> "NoiseLevels":
        """The levels without those of the first `begin` steps. Raises MinidiffError unless 0 <= begin < steps."""
        if not isinstance(begin, Integral) or not 0 <= begin < len(self.ts):
            raise MinidiffError(f"begin must be an integer from 0 to {len(self.ts) - 1}, not {begin!r:.80}")
        if begin == 0:
            return self
        alpha_bar = self.schedule.alphas_cumprod[: len(self.ts) - begin]
        rest = from_alphas_cumprod(alpha_bar, self.schedule.prediction_type)
        sigma_hat = None if self.sigma_hat is None else self.sigma_hat[: len(alpha_bar)]
        return self._replace(ts=self.ts[begin:], schedule=rest, sigma_hat=sigma_hat)

    def between(self, sigma: float) -> Level:
        """The noise level sigma, which need not be one of the list."""
        alpha_bar = np.array([1 / (1 + sigma**2)])
        one_level = from_alphas_cumprod(alpha_bar, self.schedule.prediction_type)
        return Level(time_of(self.trained, sigma), float(alpha_bar[0]), one_level, 0)

    def sampler_steps(self) -> Iterator[SamplerStep]:
        """The steps, in order. t_prev is the t of the next step, and -1 in the last."""
        alpha_bar = [self.end, *self.schedule.alphas_cumprod.tolist()]
        for i, (t, t_prev) in zip(reversed(range(len(self.ts))), pairwise([*self.ts.tolist(), -1]), strict=True):
            alpha_bar_prev = self.stride.alpha_bar_prev(t, self.end) if self.stride else alpha_bar[i]
            yield SamplerStep(i, t, t_prev, alpha_bar[i + 1], alpha_bar_prev)


class Stride(NamedTuple):
    """diffusers' rule for the timestep that ddim and pndm step to: t - length, with length = T // steps.

    With "leading" spacing that is the next timestep, with the others in general it is not.
    """

    schedule: Schedule
    length: int

    def alpha_bar_prev(self, t: int, end: float) -> float:
        """alphas_cumprod at t - length, or end if that is below 0."""
        return float(self.schedule.alphas_cumprod[t - self.length]) if t >= self.length else end


def noise_levels(schedule: AnySchedule, steps: int, sampler: Sampler) -> NoiseLevels:
    """The noise levels of so many steps of a sampler. Raises MinidiffError for a number of steps out of range."""
    if isinstance(schedule, Schedule):
        levels = _discrete_levels(schedule, steps, sampler)
    else:
        levels = _continuous_levels(schedule, steps, sampler)
    return levels._replace(sigma_hat=_raised_by_churn(levels, sampler)) if sampler.churn else levels


def _discrete_levels(schedule: Schedule, steps: int, sampler: Sampler) -> NoiseLevels:
    T = len(schedule)
    if sampler.name == "consistency":
        own = sampler.spacing == LOG_SIGMA and not sampler.as_diffusers
        ts = consistency_times(schedule, steps) if own else latent_consistency_timesteps(T, steps)
        return NoiseLevels(ts, respace(schedule, ts), 1.0, schedule)
    end = 1.0 if sampler.clean_end else float(schedule.alphas_cumprod[0])
    if sampler.name in ("ddpm", "ddim", "pndm"):
        ts = _spaced(T, steps, sampler).round().astype(np.int64)
        follows_ts = sampler.name == "ddpm" or not sampler.as_diffusers
        stride = None if follows_ts else Stride(schedule, T // steps)
        return NoiseLevels(ts, respace(schedule, ts), end, schedule, stride=stride)
    sigmas = sigmas_of(schedule)
    if sampler.name in DPM_SOLVERS:
        ts = _dpm_solver_timesteps(T, steps, sampler)
        largest, smallest = sigmas[-1], sigmas[0]
    else:
        ts = _spaced(T, steps, sampler)
        largest, smallest = np.interp(ts[[0, -1]], np.arange(T), sigmas)
    sigma = np.interp(ts, np.arange(T), sigmas)
    if sampler.karras:
        sigma = karras(largest, smallest, steps)
        ts = np.interp(np.log(sigma), np.log(sigmas), np.arange(T))
        ts = ts.round() if sampler.name in DPM_SOLVERS else ts
    alpha_bar = 1 / (1 + sigma**2)
    # x_T is sqrt(1 - alpha_bar) eps, x_t without its part of x0; in these two cases diffusers' is eps
    start = 1.0 if sampler.name in DPM_SOLVERS or sampler.spacing == "leading" else float(np.sqrt(1 - alpha_bar[0]))
    ts = ts.astype(np.int64) if np.all(ts == ts.round()) else ts
    return NoiseLevels(ts, from_alphas_cumprod(alpha_bar[::-1], schedule.prediction_type), end, schedule, start)


def _continuous_levels(schedule: EDM | Flow, steps: int, sampler: Sampler) -> NoiseLevels:
    """The sampling times of EDM or rectified flow, the same for every sampler but consistency."""
    if not isinstance(steps, Integral) or not 1 <= steps <= MAX_STEPS:
        raise MinidiffError(f"steps must be an integer from 1 to {MAX_STEPS}, not {steps!r:.80}")
    if sampler.karras:
        raise MinidiffError(
            f"karras is for schedules over whole timesteps: {schedule.prediction_type} has noise levels of its own"
        )
    few = sampler.name == "consistency"
    ts = consistency_times(schedule, steps) if few else schedule.sampling_times(steps)
    alpha_bar = schedule.alpha_bar(ts)
    start = float(np.sqrt(1 - alpha_bar[0])) if few else 1.0  # consistency begins below flow's pure noise
    if sampler.name in NEEDS_FINITE_SIGMA:
        alpha_bar = np.maximum(alpha_bar, MIN_ALPHA_BAR)
    return NoiseLevels(ts, from_alphas_cumprod(alpha_bar[::-1], schedule.prediction_type), 1.0, schedule, start)


def _raised_by_churn(levels: NoiseLevels, sampler: Sampler) -> np.ndarray:
    """sigma_hat = (1 + gamma) sigma (Karras et al. 2022, algorithm 2), at most the largest sigma of a schedule."""
    lowest, highest = sampler.churn_interval
    gamma = min(sampler.churn / len(levels.ts), math.sqrt(2) - 1)
    sigma = sigmas_of(levels.schedule)
    raised = np.where((lowest <= sigma) & (sigma <= highest), (1 + gamma) * sigma, sigma)
    return raised.clip(max=sigmas_of(levels.trained)[-1]) if isinstance(levels.trained, Schedule) else raised


def timesteps(T: int, steps: int, spacing: str = "trailing", offset: int = 0) -> np.ndarray:
    """(steps,) falling integer timesteps of T, by one of three timestep spacings (Lin et al. 2024, table 2).

    trailing  every (T / steps)-th, counted down from T - 1
    leading   every (T // steps)-th, counted up from 0, or from `offset`; in general without T - 1
    linspace  evenly from T - 1 to 0; a single step is at T - 1

    Raises MinidiffError unless 1 <= steps <= T, for another spacing, and for an offset that exceeds the schedule.
    """
    return _spaced(T, steps, Sampler(spacing=spacing, offset=offset)).round().astype(np.int64)


def consistency_times(schedule: AnySchedule, steps: int) -> np.ndarray:
    """(steps,) falling times of consistency sampling, at the noise levels sigma_0 / 25^(k / steps) for k = 0, 1, ...

    sigma_0 is 25, or the schedule's largest where that is less, so two steps begin at 25 and 5. At higher noise levels
    x_t has no more of the image than pure noise, and training has few gradients from there. Of a schedule over
    timesteps the nearest ones, which are all different: 973 and 872 of the cosine schedule's 1000.
    Raises MinidiffError for more than MAX_CONSISTENCY_STEPS steps, and for more than timesteps.
    """
    _check_consistency_steps(steps, max_steps(schedule, CONSISTENCY_SAMPLER))
    largest = schedule.sigma_max if isinstance(schedule, EDM) else FIRST_SIGMA
    largest = sigmas_of(schedule)[-1] if isinstance(schedule, Schedule) else largest
    k = np.arange(steps)
    times = [time_of(schedule, sigma) for sigma in min(FIRST_SIGMA, largest) / FIRST_SIGMA ** (k / steps)]
    if not isinstance(schedule, Schedule):
        return np.array(times)
    ts = np.maximum(np.round(times).astype(np.int64), steps - 1 - k)
    return np.minimum.accumulate(ts + k) - k


def latent_consistency_timesteps(T: int, steps: int) -> np.ndarray:
    """(steps,) falling integer timesteps of T for consistency sampling, as diffusers' LCMScheduler spaces them.

    They are evenly spaced among 50 timesteps, or all if T is less, which are spaced evenly themselves: 999, 499 for two
    steps of 1000. Raises MinidiffError for more steps than that.
    """
    grid = min(MAX_CONSISTENCY_STEPS, T)
    _check_consistency_steps(steps, grid)
    chosen = np.floor(np.linspace(0, grid, steps, endpoint=False)).astype(np.int64)
    return (grid - chosen) * (T // grid) - 1


def _check_consistency_steps(steps: int, most: int) -> None:
    if not isinstance(steps, Integral) or not 1 <= steps <= most:
        raise MinidiffError(f"steps must be an integer from 1 to {most} for consistency, not {steps!r:.80}")


def max_steps(schedule: AnySchedule, sampler: Sampler) -> int:
    """The largest number of sampling steps."""
    if not isinstance(schedule, Schedule):
        return MAX_CONSISTENCY_STEPS if sampler.name == "consistency" else MAX_STEPS
    T = len(schedule)
    if sampler.name == "consistency":
        return min(MAX_CONSISTENCY_STEPS, T)
    if sampler.spacing == "trailing":
        return T
    return T - (sampler.offset if sampler.spacing == "leading" else 0) - (sampler.name in DPM_SOLVERS)


def sigmas_of(schedule: Schedule) -> np.ndarray:
    """(T,) sigma = sqrt((1 - alpha_bar) / alpha_bar), the noise level of x_t / sqrt(alpha_bar) = x0 + sigma eps."""
    alpha_bar = schedule.alphas_cumprod
    alpha_bar = np.where(alpha_bar == 0, MIN_ALPHA_BAR, alpha_bar)
    return np.sqrt((1 - alpha_bar) / alpha_bar)


def time_of(schedule: AnySchedule, sigma: float) -> float:
    """The t of a noise level sigma; for a schedule over timesteps a fraction, as log sigma is interpolated."""
    if isinstance(schedule, EDM):
        return sigma
    if isinstance(schedule, Flow):
        return sigma / (1 + sigma)
    return float(np.interp(np.log(sigma), np.log(sigmas_of(schedule)), np.arange(len(schedule))))


def _spaced(T: int, steps: int, sampler: Sampler) -> np.ndarray:
    """As `timesteps`, but linspace is not rounded, and a single step of it with as_diffusers is at 0."""
    if not isinstance(steps, Integral) or not 1 <= steps <= T:
        raise MinidiffError(f"steps must be an integer from 1 to the schedule's {T}, not {steps!r:.80}")
    if sampler.spacing == "trailing":
        return np.arange(T, 0, -T / steps)[:steps].round() - 1  # [:steps]: rounding may add one
    if sampler.spacing == "linspace":
        return np.linspace(0 if steps > 1 or sampler.as_diffusers else T - 1, T - 1, steps)[::-1]
    ts = np.arange(steps)[::-1] * (T // steps) + sampler.offset
    if ts[0] >= T:
        raise MinidiffError(f"steps_offset {sampler.offset} exceeds the schedule's {T} steps: use fewer --steps")
    return ts.astype(np.float64)


def _dpm_solver_timesteps(T: int, steps: int, sampler: Sampler) -> np.ndarray:
    """DPM-Solver++'s timesteps, as in diffusers: with "leading" and "linspace" all but the smallest of steps + 1."""
    if sampler.spacing == "trailing":
        return _spaced(T, steps, sampler)
    if not isinstance(steps, Integral) or not 1 <= steps < T:
        raise MinidiffError(f"steps must be an integer from 1 to {T - 1} for {sampler.name}, not {steps!r:.80}")
    return _spaced(T, steps + 1, sampler).round()[:-1]
