"""New runs: the configuration from the command line's options and the dataset."""

import logging
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from minidiff import machine, ranks
from minidiff.data import BUILT_IN, POINTS, Dataset, check_images, is_image_folder, open_dataset
from minidiff.data.dataset import fingerprint
from minidiff.diffusion.continuous import EDM, SIGMA_DATA, Flow
from minidiff.diffusion.schedule import PREDICTION_TYPES, AnySchedule
from minidiff.errors import MinidiffError, NoSplit
from minidiff.models.config import ClassifierConfig
from minidiff.models.mlp import default_mlp
from minidiff.progress import progress
from minidiff.training import recipes, state
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.classifier_run import ClassifierRun
from minidiff.training.kinds.points_run import CHOICES, PointsRun
from minidiff.training.kinds.unet_run import UNetRun
from minidiff.training.kinds.vae_run import VAERun, default_vae
from minidiff.training.loop import IMAGES
from minidiff.training.parallel.agreement import check_inputs
from minidiff.training.run import Run

log = logging.getLogger(__name__)

IMAGE_OPTIONS = {
    "recipe": "--recipe", "size": "--size", "skip_bad": "--skip-bad", "pad_crop": "--pad-crop", "flip": "--no-flip",
    "learned_variance": "--learned-variance", "importance_sampling": "--importance-sampling",
}  # fmt: skip


def start_run(
    out: Path, data: str, given: dict[str, Any], by_class: bool, threads: int | None
) -> tuple[UNetRun, Dataset]:
    """A new run of a U-Net: the options in `given`, then the recipe's values, then the defaults."""
    recipe = recipes.find(name := given.pop("recipe", None))
    if (sizes := sizes_of(given)) and name:
        raise MinidiffError(f"--{next(iter(sizes))} does not go with a recipe: leave it or --recipe {name} out")
    schedule = schedule_for(given.pop("objective", recipe.schedule.prediction_type), recipe.schedule)
    config, dataset = new_config(out, data, recipe.choices | given, threads)
    classes = _classes_of(data, dataset, by_class or (recipe.by_class and len(dataset.classes) > 1))
    config = replace(config, classes=classes)
    _check_objective(config, schedule)
    if isinstance(schedule, EDM) and config.min_snr is not None:
        weight = f"min(SNR, {config.min_snr:g}), in place of EDM's own SNR + {1 / SIGMA_DATA**2:g}"
        log.info(f"--min-snr: the squared error of x0_hat has the weight {weight}.")
    try:
        network = recipe.network(dataset.shape, len(classes) + 1 if classes else None, **sizes)
    except MinidiffError as error:
        raise MinidiffError(f"--recipe {name}: {error}" if name else str(error)) from None
    if config.learned_variance:
        network = replace(network, out_channels=2 * network.out_channels)
    if name:
        log.info(f"Recipe {name}, with its settings unchanged: {recipe.time}")
    return state.new_run(UNetRun, out, config, network, schedule), dataset


def _check_objective(config: TrainConfig, schedule: AnySchedule) -> None:
    """Raises MinidiffError for a prediction type that does not go with the configuration."""
    options = {"--learned-variance": config.learned_variance, "--importance-sampling": config.importance_sampling}
    for option in [option for option, given in options.items() if given]:
        if schedule.prediction_type != "epsilon":
            raise MinidiffError(
                f"{option} is for the prediction type epsilon, not {schedule.prediction_type}: add --objective epsilon"
            )


def start_points(
    out: Path, data: str, given: dict[str, Any], by_class: bool, threads: int | None
) -> tuple[PointsRun, Dataset]:
    """A new run of an MLP on a dataset of points: the options in `given`, then the defaults of points_run.py."""
    for name in IMAGE_OPTIONS:
        if name in given:
            raise MinidiffError(f"{IMAGE_OPTIONS[name]} is for images, and {data} holds points: leave it out")
    sizes = sizes_of(given)
    schedule = schedule_for(given.pop("objective", recipes.SCHEDULE.prediction_type), recipes.SCHEDULE)
    threads = 1 if threads is None else threads  # the MLP's products are too small for more
    config, dataset = new_config(out, data, CHOICES | given, threads)
    config = replace(config, classes=(classes := _classes_of(data, dataset, by_class)))
    network = default_mlp(dataset.shape, num_class_embeds=len(classes) + 1 if classes else None, **sizes)
    return state.new_run(PointsRun, out, config, network, schedule), dataset


def _classes_of(data: str, dataset: Dataset, by_class: bool) -> tuple[str, ...]:
    """The classes of a class-conditional run, () of another. Raises MinidiffError if the dataset has a single class."""
    if by_class and len(dataset.classes) < 2:
        raise MinidiffError(f"{data}: has a single class; leave --by-class out")
    return dataset.classes if by_class else ()


def start_vae(out: Path, data: str, given: dict[str, Any], threads: int | None) -> tuple[VAERun, Dataset]:
    """A new run of an autoencoder with the options in `given`."""
    check_images(data)
    sizes = sizes_of(given)
    config, dataset = new_config(out, data, given, threads)
    return state.new_run(VAERun, out, config, default_vae(dataset.shape, **sizes)), dataset


def start_classifier(out: Path, data: str, given: dict[str, Any], threads: int | None) -> tuple[ClassifierRun, Dataset]:
    """A new run of a classifier of noisy images, with the options in `given`, for a dataset of several classes."""
    check_images(data)
    config, dataset = new_config(out, data, given, threads)
    if len(dataset.classes) < 2:
        raise MinidiffError(f"{data}: has a single class, and a classifier needs two; sort it into sub-folders")
    (H, W, C), classes = dataset.shape, dataset.classes
    network = ClassifierConfig(C, H if H == W else (H, W), classes)
    return state.new_run(ClassifierRun, out, replace(config, classes=classes), network), dataset


def sizes_of(given: dict[str, Any]) -> dict[str, int]:
    """Remove the network's width and depth from the options and return them, as far as given."""
    return {name: given.pop(name) for name in ("width", "depth") if name in given}


def new_config(out: Path, data: str, given: dict[str, Any], threads: int | None) -> tuple[TrainConfig, Dataset]:
    """The configuration of a new run and its dataset, whose path in it is absolute.

    Batches have as many parts as there are ranks, if that is not given. Raises MinidiffError if they cannot share
    its images equally, and if the run's folder is inside its dataset's.
    """
    config, n = TrainConfig(absolute_path(data), **given), ranks.size()
    if "accumulate" not in given:
        if config.batch_size % n:
            raise MinidiffError(
                f"{n} processes cannot share batches of {config.batch_size} equally: "
                f"give a --batch-size that is a multiple of {n}, or start another number of processes"
            )
        config = replace(config, accumulate=n)
    if is_image_folder(data) and out.resolve().is_relative_to(Path(data).resolve()):
        raise MinidiffError(f"{out}: lies among the images of {data}; choose another --out")
    threads = machine.use_threads(threads, config.backend)
    dataset = open_data(data, config.size, config.skip_bad)
    if config.pad_crop >= (side := min(dataset.shape[:2])):
        raise MinidiffError(f"--pad-crop {config.pad_crop}: give less than the {side} pixels of the images")
    _test_split(config, dataset)  # a damaged one is found before there is a run
    flip = config.flip and dataset.mirrors
    config = replace(config, flip=flip, threads=threads, fingerprint=data_fingerprint(data, dataset))
    check_inputs(config)
    return config, dataset


def absolute_path(data: str) -> str:
    """The absolute path of a dataset; the name of a built-in one."""
    return data if data in BUILT_IN or not data else os.path.abspath(data)


def data_fingerprint(data: str, dataset: Dataset) -> str:
    """The fingerprint of a dataset at a path; "" for a built-in one."""
    return "" if data in BUILT_IN else fingerprint(dataset)


def validation_set(run: Run, dataset: Dataset) -> Dataset:
    """The dataset of validation losses: the test split, or, where there is none, the training set."""
    test = _test_split(run.config, dataset)
    which = "the training images" if test is dataset else "the test split"
    log.info(f"Checkpoints are measured on {min(IMAGES, len(test))} of {which}.")
    return test


def _test_split(config: TrainConfig, dataset: Dataset) -> Dataset:
    """The test split of a training set; the set itself where it has none."""
    try:
        test = open_dataset(config.data, config.size, "test")
    except NoSplit:
        return dataset
    if test.shape != dataset.shape:
        raise MinidiffError(f"{config.data}: its test images are {test.shape}, the others {dataset.shape}")
    return test


def schedule_for(objective: str, schedule: AnySchedule) -> AnySchedule:
    """The schedule of a prediction type: EDM or Flow for theirs, else `schedule` with that type.

    Raises MinidiffError for another prediction type.
    """
    continuous = {schedule.prediction_type: schedule for schedule in (EDM(), Flow())}
    if objective not in (*PREDICTION_TYPES, *continuous):
        known = ", ".join((*PREDICTION_TYPES, *continuous))
        raise MinidiffError(f"--objective {objective}: choose from {known}")
    return continuous.get(objective) or replace(schedule, prediction_type=objective)


def open_data(
    data: str, size: int | None, skip_bad: bool = False, left_out: list[MinidiffError] | None = None
) -> Dataset:
    """The dataset; a message names each image that is left out, which is added to `left_out`."""
    with ExitStack() as shown:
        done_before, tick = 0, None

        def downloaded(done: int, total: int) -> None:
            nonlocal done_before, tick
            tick = tick or shown.enter_context(progress("downloading, bytes", total, transient=True))
            tick(done - done_before)
            done_before = done

        def skipped(error: MinidiffError) -> None:
            log.info(f"left out: {error}")
            if left_out is not None:
                left_out.append(error)

        skip = skipped if skip_bad else None
        dataset = open_dataset(data, size, progress=downloaded, skip=skip, notice=log.info)
    if data in POINTS:
        log.info(f"{dataset.name}: {len(dataset)} points in {dataset.shape[2]}-D, {_count_classes(dataset)}")
        return dataset
    height, width, channels = dataset.shape
    colour = "grey" if channels == 1 else "RGB"
    captions = ", with captions" if dataset.captions else ""
    images = f"{len(dataset)} images, {width}x{height} {colour}"
    log.info(f"{dataset.name}: {images}, {_count_classes(dataset)}{captions}")
    return dataset


def _count_classes(dataset: Dataset) -> str:
    return "1 class" if len(dataset.classes) == 1 else f"{len(dataset.classes)} classes"
