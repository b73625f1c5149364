"""How a run begins, or goes on: from what was asked for, what the data are, and what the folder remembers."""

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from minidiff.data import Dataset, open_dataset
from minidiff.diffusion.continuous import EDM, Flow
from minidiff.diffusion.schedule import PREDICTION_TYPES, AnySchedule, cosine_schedule
from minidiff.errors import MinidiffError
from minidiff.models.config import default_config
from minidiff.runs import machine, state
from minidiff.runs.state import Run
from minidiff.runs.terminal import bar_of, console
from minidiff.runs.train import SCHEDULE, TrainConfig


def start_run(out: Path, data: str, given: dict[str, Any], by_class: bool, threads: int | None) -> tuple[Run, Dataset]:
    """A new run of the given choices, every other at its default."""
    schedule = _schedule_of(given.pop("objective", SCHEDULE.prediction_type))
    config = TrainConfig(data, **given)
    threads = machine.use_threads(threads, config.backend)
    dataset = open_data(data, config.size)
    classes = dataset.classes if by_class else ()
    if by_class and len(classes) < 2:
        raise MinidiffError(f"{data}: has a single class; leave --by-class out")
    config = replace(config, flip=dataset.mirrors, threads=threads, classes=classes)
    network = default_config(dataset.shape, num_class_embeds=len(classes) + 1 if classes else None)
    return state.new_run(out, config, network, schedule), dataset


def resume_run(out: Path, data: str, given: dict[str, Any], by_class: bool, threads: int | None) -> tuple[Run, Dataset]:
    """The run as it was; only its total of steps may change, and the threads."""
    run = state.open_run(out)
    if by_class and not run.config.classes:
        raise MinidiffError(f"{out}: was started without --by-class; leave it out, or start a new run")
    choices = {name: value for name, value in given.items() if name not in ("steps", "objective")}
    if given.get("objective", run.schedule.prediction_type) != run.schedule.prediction_type:
        raise MinidiffError(f"{out}: was started with objective {run.schedule.prediction_type}; give that, or none")
    if os.path.abspath(data) != os.path.abspath(run.config.data):  # data and ./data/ are the same
        choices["data"] = data
    for name, value in choices.items():
        if value != (was := getattr(run.config, name)):
            raise MinidiffError(f"{out}: was started with {name} {was}, not {value}; give that, or start a new run")
    threads = min(run.config.threads, machine.cores()) if threads is None else threads
    threads = machine.use_threads(threads, run.config.backend)
    config = replace(run.config, steps=given.get("steps", run.config.steps), threads=threads)
    if config.steps < run.step:
        raise MinidiffError(f"{out}: is at step {run.step} already, beyond --steps {config.steps}; give more")
    dataset = open_data(data, config.size)
    if dataset.shape != run.unet.picture_shape:
        raise MinidiffError(f"{data}: its pictures are not the run's, {run.unet.picture_shape} before; start a new run")
    if run.config.classes and dataset.classes != run.config.classes:
        raise MinidiffError(f"{data}: its classes are not the run's, {', '.join(run.config.classes)}; start a new run")
    state.settle(run)
    return replace(run, config=config), dataset


def _schedule_of(objective: str) -> AnySchedule:
    """The noise that goes with what is to be predicted."""
    continuous = {schedule.prediction_type: schedule for schedule in (EDM(), Flow())}
    if objective not in (*PREDICTION_TYPES, *continuous):
        known = ", ".join((*PREDICTION_TYPES, *continuous))
        raise MinidiffError(f"--objective {objective}: choose from {known}")
    return continuous.get(objective) or cosine_schedule(len(SCHEDULE), objective)


def open_data(data: str, size: int | None) -> Dataset:
    """The set, with a bar if it has to be downloaded."""
    with ExitStack() as shown:
        bar = bar_of(transient=True)
        task = bar.add_task("downloading, bytes", total=None, note="")

        def downloaded(done: int, total: int) -> None:
            if not bar.live.is_started:
                shown.enter_context(bar)
            bar.update(task, completed=done, total=total)

        dataset = open_dataset(data, size, progress=downloaded)
    height, width, channels = dataset.shape
    colour = "grey" if channels == 1 else "RGB"
    classes = "1 class" if len(dataset.classes) == 1 else f"{len(dataset.classes)} classes"
    console.print(f"{dataset.name}: {len(dataset)} pictures, {width}x{height} {colour}, {classes}")
    return dataset
