"""New runs of a LoRA: the configuration (start.py) and the pipeline to update."""

from pathlib import Path
from typing import Any

from minidiff.data import Dataset, check_images, is_image_folder
from minidiff.data.batches import evenly_spaced
from minidiff.errors import MinidiffError
from minidiff.formats.folders import find
from minidiff.sampling.opening import open_pipeline
from minidiff.training import state
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.lora_run import LoRARun
from minidiff.training.start import new_config
from minidiff.training.start_text import check_captions

CHOICES: dict[str, Any] = dict(steps=400, batch_size=4, warmup=20)  # in place of TrainConfig's defaults
COMPARED = 256  # images


def start_lora(base: Path, out: Path, data: str, given: dict[str, Any], threads: int | None) -> tuple[LoRARun, Dataset]:
    """A new run that updates the pipeline in the folder `base`, on the captioned images of a dataset.

    An image folder's images are resized to the size of the pipeline's, where that is square. Raises MinidiffError for a
    pipeline that takes no prompts, and images without captions, of another shape, or that are all the same.
    """
    check_images(data)
    find(base, "text")  # raises for another kind
    backend = given.get("backend", TrainConfig.backend)
    pipeline = open_pipeline(base, backend, kind="text")
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
    return state.new_run(LoRARun, out, config, pipeline), dataset
