"""Guidance of networks that take no prompt, as options choose it: classifier-free, by a classifier, autoguidance."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minidiff.diffusion.guidance import ALWAYS, autoguided, classifier_gradient, classifier_guided
from minidiff.diffusion.model import Model, as_model
from minidiff.errors import MinidiffError
from minidiff.formats.networks import load_classifier
from minidiff.formats.pipeline import Pipeline
from minidiff.models.classifier import NoisyClassifier
from minidiff.sampling.inputs import class_labels, class_names, labels_of
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.settings import guided_model


@dataclass(frozen=True)
class Guidance:
    """The kind of guidance and its settings.

    scale, rescale, interval   as `guided`, `autoguided` and `classifier_guided` take them
    classifier                 the folder of a classifier of noisy images, for classifier guidance
    autoguide                  the step of a checkpoint that the same run keeps, for autoguidance
    Raises MinidiffError for values out of range, for two kinds at once, and for settings without effect.
    """

    scale: float = 1.0
    rescale: float = 0.0
    interval: tuple[float, float] = ALWAYS
    classifier: Path | None = None
    autoguide: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 100:  # NaN is not
            raise MinidiffError(f"--guidance {self.scale:g}: give a number from 0 to 100")
        if not 0 <= self.rescale <= 1:
            raise MinidiffError(f"--guidance-rescale {self.rescale:g}: give a number from 0 to 1")
        if self.classifier and self.autoguide is not None:
            raise MinidiffError("--classifier and --autoguide are two kinds of guidance: give one of them")
        settings = {
            "--autoguide": self.autoguide is not None,
            "--guidance-rescale": self.rescale != 0,
            "--guidance-interval": self.interval != ALWAYS,
        }
        for option, given in settings.items():
            if given and self.scale == (0 if self.classifier else 1):
                raise MinidiffError(f"{option} has no effect without guidance: give --guidance too, such as 2")


def model_and_labels(
    pipeline: Pipeline, guidance: Guidance, name: str | None, n: int, seeds: list[int] | None = None
) -> tuple[Model, np.ndarray | None, tuple[str, ...]]:
    """The network as a model with guidance, labels (n,) for it, as `class_labels` or of the classifier's classes, and
    the names of the classes.

    Raises MinidiffError if there is no such class, and for guidance that the network or the classifier does not allow.
    """
    model, schedule = as_model(pipeline.unet, pipeline.schedule), pipeline.schedule
    settings = (guidance.scale, guidance.rescale, guidance.interval)
    if guidance.classifier:
        classifier = _classifier(pipeline, guidance.classifier)
        labels = labels_of(guidance.classifier, classifier.config.classes, name, n, seeds)
        gradient = classifier_gradient(classifier, schedule)
        return classifier_guided(model, schedule, gradient, *settings), labels, classifier.config.classes
    labels, names = class_labels(pipeline, name, n, seeds), class_names(pipeline)
    if guidance.autoguide is None:
        return guided_model(pipeline, *settings), labels, names
    weak = open_pipeline(pipeline.folder, pipeline.unet.backend.name, guidance.autoguide, kind="unet")
    return autoguided(model, as_model(weak.unet, schedule), *settings), labels, names


def _classifier(pipeline: Pipeline, folder: Path) -> NoisyClassifier:
    """The classifier of a folder. Raises MinidiffError if it does not fit the pipeline's images, or is not needed."""
    if pipeline.num_class_embeds is not None:
        raise MinidiffError(f"{pipeline.folder}: was trained by class; leave --classifier out")
    classifier = load_classifier(folder, pipeline.unet.backend.name)
    of_classifier, of_images = (
        f"{width}x{height} images of {channels} channel{'s' * (channels > 1)}"
        for height, width, channels in (classifier.config.image_shape, pipeline.image_shape)
    )
    if of_classifier != of_images:
        raise MinidiffError(
            f"{folder}: is for {of_classifier}, {pipeline.folder} samples {of_images}; train one on those"
        )
    return classifier
