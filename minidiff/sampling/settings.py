"""Sampling settings: a folder's schedule, the sampler, the number of steps."""

from dataclasses import replace
from pathlib import Path

from minidiff.diffusion.noise_levels import max_steps, noise_levels, sigmas_of
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule, Schedule
from minidiff.formats.networks import load_sampler, load_schedule

LARGE_SIGMA = 1000  # largest sigma from which Heun's method is accurate in few steps; cosine schedules begin above it
HEUN_STEPS = 100  # steps that are enough even there


def sampling_settings(
    folder: Path,
    sampler: str | None,
    eta: float,
    spacing: str | None,
    karras: bool,
    steps: int | None,
    noise: str = "numpy",
) -> tuple[AnySchedule, Sampler, int]:
    """A folder's schedule, its sampler (or the one named) with the given settings, and the number of sampling steps.

    None leaves a setting as the folder has it. noise "torch" makes the sampler as_diffusers.
    Raises MinidiffError for settings that contradict each other.
    """
    chosen = replace(load_sampler(folder, sampler), eta=eta, as_diffusers=noise == "torch")
    chosen = replace(chosen, spacing=chosen.spacing if spacing is None else spacing, karras=karras or chosen.karras)
    schedule = load_schedule(folder, chosen)
    steps = default_steps(schedule, chosen) if steps is None else steps
    noise_levels(schedule, steps, chosen)  # raises for what this schedule does not support
    return schedule, chosen, steps


def accuracy_warning(schedule: AnySchedule, sampler: Sampler, steps: int) -> str:
    """What to tell of settings that are valid and yet give poor samples, or "": Heun's method in few steps.

    Raises MinidiffError for settings that the schedule does not support.
    """
    largest_sigma = sigmas_of(noise_levels(schedule, steps, sampler).schedule)[-1]
    few = isinstance(schedule, Schedule) and steps < HEUN_STEPS and largest_sigma > LARGE_SIGMA
    if sampler.name != "heun" or sampler.karras or not few:
        return ""
    return (
        f"heun is inaccurate in {steps} steps from sigma {largest_sigma:.0f}: "
        f"take {HEUN_STEPS} --steps, or minidiff sample's --karras"
    )


def default_steps(schedule: AnySchedule, sampler: Sampler) -> int:
    """The number of sampling steps by default: all for ddpm, else 50, or as many as the schedule has if fewer."""
    longest = max_steps(schedule, sampler)
    return longest if sampler.name == "ddpm" else min(50, longest)
