"""How a run begins: from what was asked for, and what the data are."""

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from minidiff.data import BUILT_IN, Dataset, is_folder_of_pictures, open_dataset
from minidiff.data.dataset import fingerprint
from minidiff.diffusion.continuous import EDM, SIGMA_DATA, Flow
from minidiff.diffusion.schedule import PREDICTION_TYPES, AnySchedule
from minidiff.errors import MinidiffError, NoSplit
from minidiff.runs import machine, recipes, state
from minidiff.runs.probe import PICTURES
from minidiff.runs.run import Run
from minidiff.runs.terminal import bar_of, console
from minidiff.runs.train import TrainConfig
from minidiff.runs.unet_run import UNetRun
from minidiff.runs.vae_run import VAERun, default_vae


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
    if isinstance(schedule, EDM) and config.min_snr is not None:
        weight = f"min(SNR, {config.min_snr:g}), in place of EDM's own SNR + {1 / SIGMA_DATA**2:g}"
        console.print(f"--min-snr: the squared error of x0_hat has the weight {weight}.")
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
    """The choices of a new run, which finds its data again from any folder, and the set.

    Raises MinidiffError for a run amid its pictures.
    """
    config = TrainConfig(place_of(data), **given)
    if is_folder_of_pictures(data) and out.resolve().is_relative_to(Path(data).resolve()):
        raise MinidiffError(f"{out}: lies among the pictures of {data}; choose another --out")
    threads = machine.use_threads(threads, config.backend)
    dataset = open_data(data, config.size, config.skip_bad)
    if config.pad_crop >= (side := min(dataset.shape[:2])):
        raise MinidiffError(f"--pad-crop {config.pad_crop}: give less than the {side} pixels of the pictures")
    _test_split(config, dataset)  # which is found damaged before there is a run
    flip = config.flip and dataset.mirrors
    return replace(config, flip=flip, threads=threads, pictures=known_by(data, dataset)), dataset


def place_of(data: str) -> str:
    """Where a dataset lies, from whatever folder it is looked for; a built-in one by its name."""
    return data if data in BUILT_IN or not data else os.path.abspath(data)


def known_by(data: str, dataset: Dataset) -> str:
    """The fingerprint of a set that lies at a path; "" of a built-in one."""
    return "" if data in BUILT_IN else fingerprint(dataset)


def held_out(run: Run, dataset: Dataset) -> Dataset:
    """What checkpoints are measured on: the set's test split, or, where it has none, what the run learns from."""
    test = _test_split(run.config, dataset)
    which = "its own pictures" if test is dataset else "the test split"
    console.print(f"Checkpoints are measured on {min(PICTURES, len(test))} of {which}.")
    return test


def _test_split(config: TrainConfig, dataset: Dataset) -> Dataset:
    """The test split of a training set; the set itself where it has none."""
    try:
        test = open_dataset(config.data, config.size, "test")
    except NoSplit:
        return dataset
    if test.shape != dataset.shape:
        raise MinidiffError(f"{config.data}: its test pictures are {test.shape}, the others {dataset.shape}")
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

        skip = skipped if skip_bad else None
        dataset = open_dataset(data, size, progress=downloaded, skip=skip, notice=console.print)
    height, width, channels = dataset.shape
    colour = "grey" if channels == 1 else "RGB"
    classes = "1 class" if len(dataset.classes) == 1 else f"{len(dataset.classes)} classes"
    said = ", with captions" if dataset.captions else ""
    console.print(f"{dataset.name}: {len(dataset)} pictures, {width}x{height} {colour}, {classes}{said}")
    return dataset
