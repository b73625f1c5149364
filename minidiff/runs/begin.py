"""How a run begins, or goes on: from what was asked for, what the data are, and what the folder remembers."""

import math
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from minidiff.data import BUILT_IN, Dataset, is_folder_of_pictures, open_dataset
from minidiff.data.dataset import fingerprint
from minidiff.diffusion.continuous import EDM, Flow
from minidiff.diffusion.schedule import PREDICTION_TYPES, AnySchedule
from minidiff.errors import MinidiffError, NoSplit
from minidiff.runs import machine, recipes, state
from minidiff.runs.probe import PICTURES
from minidiff.runs.run import Run
from minidiff.runs.terminal import bar_of, console
from minidiff.runs.train import TrainConfig
from minidiff.runs.unet_run import UNetRun
from minidiff.runs.vae_run import VAERun, default_vae

R = TypeVar("R", bound=Run)


def start_run(
    out: Path, data: str, given: dict[str, Any], by_class: bool, threads: int | None
) -> tuple[UNetRun, Dataset]:
    """A new run of the given choices, every other as the recipe has it, or at its default."""
    recipe = recipes.find(name := given.pop("recipe", None))
    if (sizes := sizes_of(given)) and name:
        raise MinidiffError(f"--{next(iter(sizes))} is for networks without a recipe: leave it or --recipe {name} out")
    schedule = schedule_of(given.pop("objective", recipe.schedule.prediction_type), recipe.schedule)
    config, dataset = begun(out, data, recipe.choices | given, threads)
    classes = dataset.classes if by_class or (recipe.by_class and len(dataset.classes) > 1) else ()
    if by_class and len(classes) < 2:
        raise MinidiffError(f"{data}: has a single class; leave --by-class out")
    config = replace(config, classes=classes)
    try:
        network = recipe.network(dataset.shape, len(classes) + 1 if classes else None, **sizes)
    except MinidiffError as error:
        raise MinidiffError(f"--recipe {name}: {error}" if name else str(error)) from None
    if name:
        console.print(f"Recipe {name}, if nothing of it is changed: {recipe.time}")
    return state.new_run(UNetRun, out, config, network, schedule), dataset


def start_vae(out: Path, data: str, given: dict[str, Any], threads: int | None) -> tuple[VAERun, Dataset]:
    """A new run of an autoencoder."""
    sizes = sizes_of(given)
    config, dataset = begun(out, data, given, threads)
    return state.new_run(VAERun, out, config, default_vae(dataset.shape, **sizes)), dataset


def sizes_of(given: dict[str, Any]) -> dict[str, int]:
    """Take the network's width and depth from what is given, as far as they are."""
    return {name: given.pop(name) for name in ("width", "depth") if name in given}


def begun(out: Path, data: str, given: dict[str, Any], threads: int | None) -> tuple[TrainConfig, Dataset]:
    """The choices of a new run, and the set. Raises MinidiffError for a run amid its pictures."""
    config = TrainConfig(data, **given)
    if is_folder_of_pictures(data) and out.resolve().is_relative_to(Path(data).resolve()):
        raise MinidiffError(f"{out}: lies among the pictures of {data}; choose another --out")
    threads = machine.use_threads(threads, config.backend)
    dataset = open_data(data, config.size, config.skip_bad)
    if config.pad_crop >= (side := min(dataset.shape[:2])):
        raise MinidiffError(f"--pad-crop {config.pad_crop}: give less than the {side} pixels of the pictures")
    return replace(config, flip=dataset.mirrors, threads=threads, pictures=_known_by(data, dataset)), dataset


def _known_by(data: str, dataset: Dataset) -> str:
    """The fingerprint of a set that lies at a path; "" of a built-in one."""
    return "" if data in BUILT_IN else fingerprint(dataset)


def resume_run(
    out: Path, data: str, given: dict[str, Any], by_class: bool, threads: int | None
) -> tuple[UNetRun, Dataset]:
    """The run as it was; only its total of steps may change, the threads, and that it skips pictures from now on."""
    run = state.open_run(out, UNetRun)
    recipe = recipes.find(given.pop("recipe", None))
    given = {k: value for k, value in recipe.choices.items() if k != "steps"} | given
    if by_class and not run.config.classes:
        raise MinidiffError(f"{out}: was started without --by-class; leave it out, or start a new run")
    same_objective(out, given, run.schedule)
    same_sizes(out, given, run.unet.config)
    run, dataset = resumed(run, data, given, threads)
    if run.config.classes and dataset.classes != run.config.classes:
        raise MinidiffError(f"{data}: its classes are not the run's, {', '.join(run.config.classes)}; start a new run")
    state.settle(run)
    return run, dataset


def same_objective(out: Path, given: dict[str, Any], schedule: AnySchedule) -> None:
    """Take the objective from what is given. Raises MinidiffError for one that is not the run's."""
    if given.pop("objective", was := schedule.prediction_type) != was:
        raise MinidiffError(f"{out}: was started with objective {was}; give that, or none")


def same_sizes(out: Path, given: dict[str, Any], network: Any) -> None:
    """Take the network's width and depth from what is given. Raises MinidiffError for others than the run's."""
    widths = network.block_out_channels
    was = {"width": widths[0], "depth": len(widths)}
    for name, value in sizes_of(given).items():
        if value != was[name]:
            raise MinidiffError(
                f"{out}: was started {_chosen(name, was[name], value)}; leave it out, or start a new run"
            )


def resume_vae(out: Path, data: str, given: dict[str, Any], threads: int | None) -> tuple[VAERun, Dataset]:
    """The autoencoder's run as it was, as `resume_run`."""
    run = state.open_run(out, VAERun)
    same_sizes(out, given, run.vae.config)
    run, dataset = resumed(run, data, given, threads)
    state.settle(run)
    return run, dataset


def resumed(run: R, data: str, given: dict[str, Any], threads: int | None) -> tuple[R, Dataset]:
    """The run with what may change, and the set. Raises MinidiffError for what may not."""
    out, choices = run.folder, {k: value for k, value in given.items() if k not in ("steps", "skip_bad")}
    if not _may_be(run.config, data):
        raise MinidiffError(f"{out}: was started with {run.config.data}, not {data}; give that, or start a new run")
    for name, value in choices.items():
        if value != (was := getattr(run.config, name)):
            raise MinidiffError(f"{out}: was started {_chosen(name, was, value)}; leave it out, or start a new run")
    threads = min(run.config.threads, machine.cores()) if threads is None else threads
    threads = machine.use_threads(threads, run.config.backend)
    changes = {name: given[name] for name in ("steps", "skip_bad") if name in given}
    config = replace(run.config, data=data, threads=threads, **changes)
    if config.steps < run.step:
        raise MinidiffError(f"{out}: is at step {run.step} already, beyond --steps {config.steps}; give more")
    left_out: list[MinidiffError] = []
    dataset = open_data(data, config.size, config.skip_bad, left_out)
    if dataset.shape != run.shape:
        raise MinidiffError(f"{data}: its pictures are not the run's, {run.shape} before; start a new run")
    pictures = _known_by(data, dataset)
    if run.config.pictures not in ("", pictures) and not left_out:  # what is left of a set is another one
        raise MinidiffError(f"{data}: is not the set that {out} was started with; give that, or start a new run")
    return replace(run, config=replace(config, pictures=pictures)), dataset


def _may_be(config: TrainConfig, data: str) -> bool:
    """Whether that may be the run's set; one that is known by its pictures may lie anywhere."""
    if config.pictures:
        return data not in BUILT_IN
    return os.path.abspath(data) == os.path.abspath(config.data)  # as built-in sets do; older runs go by the path


def _chosen(name: str, was: Any, value: Any) -> str:
    """How an option of the command line was chosen, not as now."""
    option = f"--{name.replace('_', '-')}"
    if name == "ema":
        option, was, value = "--ema-half-life", *(f"{math.log(0.5) / math.log(decay):g}" for decay in (was, value))
    return f"without {option}" if was is None else f"with {option} {was}, not {value}"


def held_out(run: Run, dataset: Dataset) -> Dataset:
    """What checkpoints are measured on: the set's test split, or, where it has none, what the run learns from."""
    try:
        test = open_dataset(run.config.data, run.config.size, "test")
    except NoSplit:
        test = dataset
    if test.shape != dataset.shape:
        raise MinidiffError(f"{run.config.data}: its test pictures are {test.shape}, the others {dataset.shape}")
    which = "its own pictures" if test is dataset else "the test split"
    console.print(f"Checkpoints are measured on {min(PICTURES, len(test))} of {which}.")
    return test


def schedule_of(objective: str, schedule: AnySchedule) -> AnySchedule:
    """The noise that goes with what is to be predicted: the one that is meant, where any will do."""
    continuous = {schedule.prediction_type: schedule for schedule in (EDM(), Flow())}
    if objective not in (*PREDICTION_TYPES, *continuous):
        known = ", ".join((*PREDICTION_TYPES, *continuous))
        raise MinidiffError(f"--objective {objective}: choose from {known}")
    return continuous.get(objective) or replace(schedule, prediction_type=objective)


def open_data(
    data: str, size: int | None, skip_bad: bool = False, left_out: list[MinidiffError] | None = None
) -> Dataset:
    """The set, with a bar if it has to be downloaded; pictures that are left out are named, and added to `left_out`."""
    with ExitStack() as shown:
        bar = bar_of(transient=True)
        task = bar.add_task("downloading, bytes", total=None, note="")

        def downloaded(done: int, total: int) -> None:
            if not bar.live.is_started:
                shown.enter_context(bar)
            bar.update(task, completed=done, total=total)

        def skipped(error: MinidiffError) -> None:
            console.print(f"left out: {error}")
            if left_out is not None:
                left_out.append(error)

        dataset = open_dataset(data, size, progress=downloaded, skip=skipped if skip_bad else None)
    height, width, channels = dataset.shape
    colour = "grey" if channels == 1 else "RGB"
    classes = "1 class" if len(dataset.classes) == 1 else f"{len(dataset.classes)} classes"
    said = ", with captions" if dataset.captions else ""
    console.print(f"{dataset.name}: {len(dataset)} pictures, {width}x{height} {colour}, {classes}{said}")
    return dataset
