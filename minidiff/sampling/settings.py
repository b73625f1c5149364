"""Sampling settings: the sampler's, the number of steps, guidance by class."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from minidiff.diffusion.guidance import ALWAYS, guided
from minidiff.diffusion.model import as_model
from minidiff.diffusion.noise_levels import max_steps, noise_levels, sigmas_of
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule, Schedule
from minidiff.errors import MinidiffError
from minidiff.formats.pipeline import Pipeline

LARGE_SIGMA = 1000  # largest sigma from which Heun's method is accurate in few steps; cosine schedules begin above it
HEUN_STEPS = 100  # steps that are enough even there

P = TypeVar("P", bound=Pipeline)


def sampling_settings(
    pipeline: P,
    steps: int | None = None,
    eta: float = 0.0,
    spacing: str | None = None,
    karras: bool = False,
    churn: float = 0.0,
) -> tuple[P, int]:
    """The pipeline with these settings of its sampler, and the number of sampling steps, None: the default.

    A spacing of None, and karras False, leave a setting as the folder has it.
    Raises MinidiffError for settings that contradict each other.
    """
    if spacing is not None and pipeline.sampler.name == "consistency":
        raise MinidiffError(f"--spacing {spacing}: consistency has timesteps of its own; leave it out")
    sampler = replace(pipeline.sampler, eta=eta, churn=churn)
    sampler = replace(sampler, spacing=sampler.spacing if spacing is None else spacing, karras=karras or sampler.karras)
    steps = default_steps(pipeline.schedule, sampler) if steps is None else steps
    noise_levels(pipeline.schedule, steps, sampler)  # raises for what this schedule does not support
    return replace(pipeline, sampler=sampler), steps


def accuracy_warning(pipeline: Pipeline, steps: int) -> str:
    """What to tell of settings that are valid and yet give poor samples, or "": Heun's method in few steps."""
    schedule, sampler = pipeline.schedule, pipeline.sampler
    largest_sigma = sigmas_of(noise_levels(schedule, steps, sampler).schedule)[-1]
    few = isinstance(schedule, Schedule) and steps < HEUN_STEPS and largest_sigma > LARGE_SIGMA
    if sampler.name != "heun" or sampler.karras or not few:
        return ""
    return (
        f"heun is inaccurate in {steps} steps from sigma {largest_sigma:.0f}: "
        f"take {HEUN_STEPS} --steps, or minidiff sample's --karras"
    )


def default_steps(schedule: AnySchedule, sampler: Sampler) -> int:
    """The number of sampling steps by default: all for ddpm, 2 for consistency, else 50; at most the schedule's."""
    longest = max_steps(schedule, sampler)
    if sampler.name == "consistency":
        return min(2, longest)
    return longest if sampler.name == "ddpm" else min(50, longest)


def guided_model(
    pipeline: Pipeline, guidance: float, rescale: float = 0.0, interval: tuple[float, float] = ALWAYS
) -> Callable[..., Any]:
    """The network as a model (x_t, t, cond) -> prediction, with classifier-free guidance unless its scale is 1.

    Raises MinidiffError if the scale is not from 0 to 100, if the network is not class-conditional, or if classes.json
    does not leave the last class embedding to the null class.
    """
    model = as_model(pipeline.unet, pipeline.schedule)
    if guidance == 1:
        return model
    if not 0 <= guidance <= 100:  # NaN is not
        raise MinidiffError(f"--guidance {guidance:g}: give a number from 0 to 100")
    if pipeline.num_class_embeds is None:
        raise MinidiffError(f"--guidance {guidance:g} is for networks that were trained by class; leave it out")
    null = pipeline.num_class_embeds - 1
    if len(pipeline.classes) != null:
        raise MinidiffError(
            f"{pipeline.folder}: has no classes.json of all its classes but the last; leave --guidance out"
        )
    return guided(model, null, guidance, rescale, interval)
