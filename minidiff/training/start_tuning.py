"""New runs that start from the weights of a pipeline: the configuration (start.py), the pipeline, the prior (prior.py).

They teach a text-conditional pipeline new images, or make a consistency model of any that samples images.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import minidiff.ranks as ranks
from minidiff.data import Dataset, check_images, is_image_folder
from minidiff.data.batches import evenly_spaced
from minidiff.engine.nn import Parameter
from minidiff.errors import MinidiffError
from minidiff.formats.folders import find
from minidiff.formats.pipeline import Pipeline, TextPipeline
from minidiff.formats.run_networks import trained_parameters
from minidiff.models.tokenizer import normalize
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import with_prompts
from minidiff.training import state
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.lora_run import LoRARun
from minidiff.training.kinds.text_run import TextRun
from minidiff.training.kinds.textual_inversion_run import TextualInversionRun
from minidiff.training.kinds.unet_run import UNetRun
from minidiff.training.prior import given_prior, sample_prior, save_prior
from minidiff.training.run import Run
from minidiff.training.start import new_config
from minidiff.training.start_text import check_captions

CHOICES: dict[str, Any] = dict(steps=400, batch_size=4, warmup=20)  # in place of TrainConfig's defaults
LORA: dict[str, Any] = dict(projections="text", lr=2e-3, flip=False)  # likewise; a caption may say left or right
OWN_PRIOR = 10.0  # weight of prior preservation without images
COMPARED = 256  # images
INVERSION_RATE = 0.2  # of textual inversion: learning rate in units of the embeddings' standard deviation
DREAMBOOTH_RATE = 1e-4

STAGES = 4  # of consistency tuning: the gap of the last is 1/16 of t
CONSISTENCY: dict[str, Any] = dict(steps=2000, optimizer="muon", lr=1e-3, warmup=50, consistency=STAGES)
KEPT = ("size", "skip_bad", "pad_crop", "flip", "batch_size", "label_dropout")  # fields of the diffusion model's run

Prior = str | Sequence[str]  # the dataset of captioned images, or prompts to sample them; () is none


def start_lora(
    base: Path, out: Path, data: str, given: dict[str, Any], prior: Prior, threads: int | None
) -> tuple[LoRARun, Dataset]:
    """A new run that updates the pipeline in the folder `base`, on the captioned images of a dataset.

    Without images of a prior the model's own predictions take their place. Raises MinidiffError as `_open`.
    """
    pipeline, config, dataset = _open(base, out, data, LORA | _lora_prior(given, prior), threads)
    return state.new_run(LoRARun, out, config, pipeline, begin=partial(_write_prior, prior)), dataset


def start_textual_inversion(
    base: Path, out: Path, data: str, given: dict[str, Any], threads: int | None
) -> tuple[TextualInversionRun, Dataset]:
    """A new run that learns the embedding of a new word, "word" of `given`, for the pipeline in the folder `base`.

    Raises MinidiffError as `_open`, as `check_word` and `initial_vectors`, and for captions without the word.
    """
    pipeline, config, dataset = _open(base, out, data, given, threads)
    config = replace(config, lr=given.get("lr", INVERSION_RATE * embedding_std(pipeline)))

    def begin(run: TextualInversionRun) -> None:
        for caption in dataset.captions:
            if normalize(config.word) not in normalize(caption):
                raise MinidiffError(f"{data}: the caption {caption!r:.80} is without {config.word}; write it in")

    return state.new_run(TextualInversionRun, out, config, pipeline, begin=begin), dataset


def start_dreambooth(
    base: Path, out: Path, data: str, given: dict[str, Any], prior: Prior, threads: int | None
) -> tuple[TextRun, Dataset]:
    """A new run of all weights of the pipeline in the folder `base`, its autoencoder's excepted, from where they are.

    Raises MinidiffError as `_open`.
    """
    given = {"lr": DREAMBOOTH_RATE, **_with_weight(given, prior)}
    pipeline, config, dataset = _open(base, out, data, given, threads)
    config = replace(config, begun_from=str(base.absolute()))

    def begin(run: TextRun) -> None:
        _set_weights(run, [p for _, p in trained_parameters(pipeline, run.frozen)])
        _write_prior(prior, run)

    parts = (pipeline.unet.config, pipeline.schedule, pipeline.tokenizer, pipeline.vae, pipeline.text_encoder.config)
    return state.new_run(TextRun, out, config, *parts, begin=begin), dataset


def start_distillation(
    base: Path, out: Path, data: str | None, given: dict[str, Any], threads: int | None
) -> tuple[Run, Dataset]:
    """A new run that makes a consistency model of a diffusion model by consistency tuning (diffusion/consistency/).

    base  a run, whose averaged weights it starts from, or a folder of diffusers; with prompts or without
    data  None: the training set of the run; an image folder's images are resized to the size of the model's

    A text encoder stays as it is. Raises MinidiffError for a folder without such a model, for a model with a learned
    variance, for a consistency model, and for images of another shape or with other classes.
    """
    found = find(base, "unet", "text")
    pipeline = open_pipeline(base, given.get("backend", TrainConfig.backend), kind=("unet", "text"))
    if pipeline.learned_variance:
        raise MinidiffError(f"{base}: predicts its variance too, and consistency models have none; give another run")
    if pipeline.schedule.prediction_type == "sample":
        raise MinidiffError(f"{base}: predicts x0, by which tuning drifts; train with another --objective")
    if pipeline.sampler.name == "consistency":
        raise MinidiffError(f"{base}: is a consistency model already; give the run that it was made of")
    before = found.state.config if found.state else {}
    data = data or before.get("data")
    if data is None:
        raise MinidiffError(f"{base}: is no run, so DATA is missing: give the images that it was trained on")
    check_images(data)
    kept = {name: before[name] for name in KEPT if name in before}
    config, dataset = new_config(out, data, kept | _size(pipeline, data) | CONSISTENCY | given, threads)
    config = replace(config, classes=pipeline.classes, begun_from=str(base.absolute()))
    _check_same_images(base, pipeline, data, dataset)
    kind, parts = UNetRun, (pipeline.unet.config, pipeline.schedule)
    if isinstance(pipeline, TextPipeline):
        kind, parts = TextRun, (*parts, pipeline.tokenizer, pipeline.vae, pipeline.text_encoder)
    weights = pipeline.unet.parameters()
    return state.new_run(kind, out, config, *parts, begin=lambda run: _set_weights(run, weights)), dataset


def _check_same_images(base: Path, pipeline: Pipeline, data: str, dataset: Dataset) -> None:
    """Raises MinidiffError for a dataset whose images, classes or captions are not those that a pipeline samples."""
    if isinstance(pipeline, TextPipeline):
        check_captions(data, dataset)
    if dataset.shape != pipeline.image_shape:
        raise MinidiffError(
            f"{data}: its images have the shape {dataset.shape}, and {base} samples {pipeline.image_shape}; give such"
        )
    if pipeline.num_class_embeds is not None and dataset.classes != pipeline.classes:
        of_base = ", ".join(pipeline.classes) or "not named in its classes.json"
        raise MinidiffError(f"{data}: its classes are not those of {base}, {of_base}; give the images of those")


def _set_weights(run: Run, weights: list[Parameter]) -> None:
    """Set a run's weights, and all their averages, to others, in the order of its optimiser."""
    for (_, p), own in zip(run.named_parameters(), weights, strict=True):
        p.data[...] = p.backend.asarray(own.numpy().astype(np.float32))
    for ema in run.optimizer.emas:
        ema[...] = run.optimizer.p


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
    config, dataset = new_config(out, data, CHOICES | _size(pipeline, data) | given, threads)
    _check_same_images(base, pipeline, data, dataset)
    images = dataset.take(evenly_spaced(len(dataset), COMPARED))
    if len(images) > 1 and (images == images[:1]).all():
        raise MinidiffError(f"{data}: its {len(dataset)} images are all the same; give different ones, or one alone")
    return pipeline, config, dataset


def _size(pipeline: Pipeline, data: str) -> dict[str, int]:
    """The size to which an image folder's images are resized: the pipeline's, where that is square."""
    height, width, _ = pipeline.image_shape
    return {"size": height} if is_image_folder(data) and height == width else {}


def embedding_std(pipeline: TextPipeline) -> float:
    """The standard deviation of the values in the token embedding, the scale of a new word's vectors."""
    return float(pipeline.text_encoder.embeddings.token_embedding.weight.numpy().std(dtype=np.float64))


def _with_weight(given: dict[str, Any], prior: Prior) -> dict[str, Any]:
    """The options, with prior_weight 1 if there is a prior and it is not given.

    Raises MinidiffError if it is given without a prior.
    """
    if not prior and "prior_weight" in given:
        raise MinidiffError("--prior-weight needs images of a prior: give --prior or --prior-prompt")
    return {"prior_weight": 1.0, **given} if prior else given


def _lora_prior(given: dict[str, Any], prior: Prior) -> dict[str, Any]:
    """The options, with what prior preservation of a LoRA takes; a prior_weight of 0 disables it."""
    weight = given.get("prior_weight", 1.0 if prior else OWN_PRIOR)
    if prior and weight == 0:
        raise MinidiffError("--prior-weight 0 disables prior preservation: leave --prior and --prior-prompt out")
    return given | {"prior_weight": weight or None, "own_prior": not prior and weight != 0}


def _write_prior(prior: Prior, run: TextRun) -> None:
    """Write the images of a prior into the folder of a new run: given, or sampled by its pipeline as it is.

    Of several ranks, rank 0 does.
    """
    if ranks.rank() > 0:
        return
    if isinstance(prior, str):
        save_prior(run.folder, given_prior(prior, run.shape))
    elif prior:
        with ranks.alone():
            save_prior(run.folder, sample_prior(run.pipeline, prior, run.config.seed, run.config.batch_size))
