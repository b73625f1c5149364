"""New runs that tune a text-conditional pipeline: the configuration (start.py), the pipeline, the prior (prior.py)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from minidiff.data import Dataset, check_images, is_image_folder
from minidiff.data.batches import evenly_spaced
from minidiff.errors import MinidiffError
from minidiff.formats.folders import find
from minidiff.formats.pipeline import TextPipeline
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import with_prompts
from minidiff.training import state
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.lora_run import LoRARun
from minidiff.training.kinds.text_run import TextRun
from minidiff.training.prior import given_prior, sample_prior, save_prior
from minidiff.training.start import new_config
from minidiff.training.start_text import check_captions

CHOICES: dict[str, Any] = dict(steps=400, batch_size=4, warmup=20)  # in place of TrainConfig's defaults
COMPARED = 256  # images

Prior = str | Sequence[str]  # the dataset of captioned images, or prompts to sample them; () is none


def start_lora(
    base: Path, out: Path, data: str, given: dict[str, Any], prior: Prior, threads: int | None
) -> tuple[LoRARun, Dataset]:
    """A new run that updates the pipeline in the folder `base`, on the captioned images of a dataset.

    Raises MinidiffError as `_open`.
    """
    pipeline, config, dataset = _open(base, out, data, _with_weight(given, prior), threads)
    return state.new_run(LoRARun, out, config, pipeline, begin=partial(_write_prior, prior)), dataset


def _open(
    base: Path, out: Path, data: str, given: dict[str, Any], threads: int | None
) -> tuple[TextPipeline, TrainConfig, Dataset]:
    """The pipeline in the folder `base`, the configuration of a new run, and its captioned images.

    An image folder's images are resized to the size of the pipeline's, where that is square. Raises MinidiffError for a
    pipeline that takes no prompts, and images without captions, of another shape, or that are all the same.
    """
    check_images(data)
    find(base, "text")  # raises for another kind
    pipeline = with_prompts(open_pipeline(base, given.get("backend", TrainConfig.backend), kind="text"))
    height, width, _ = pipeline.image_shape
    size = {"size": height} if is_image_folder(data) and height == width else {}
    config, dataset = new_config(out, data, CHOICES | size | given, threads)
    check_captions(data, dataset)
    if dataset.shape != pipeline.image_shape:
        raise MinidiffError(
            f"{data}: its images have the shape {dataset.shape}, and {base} samples {pipeline.image_shape}; give such"
        )
    images = dataset.take(evenly_spaced(len(dataset), COMPARED))
    if len(images) > 1 and (images == images[:1]).all():
        raise MinidiffError(f"{data}: its {len(dataset)} images are all the same; give different ones, or one alone")
    return pipeline, config, dataset


def _with_weight(given: dict[str, Any], prior: Prior) -> dict[str, Any]:
    """The options, with prior_weight 1 if there is a prior and it is not given.

    Raises MinidiffError if it is given without a prior.
    """
    if not prior and "prior_weight" in given:
        raise MinidiffError("--prior-weight needs images of a prior: give --prior or --prior-prompt")
    return {"prior_weight": 1.0, **given} if prior else given


def _write_prior(prior: Prior, run: TextRun) -> None:
    """Write the images of a prior into the folder of a new run: given, or sampled by its pipeline as it is."""
    if isinstance(prior, str):
        save_prior(run.folder, given_prior(prior, run.shape))
    elif prior:
        save_prior(run.folder, sample_prior(run.pipeline, prior, run.config.seed, run.config.batch_size))
