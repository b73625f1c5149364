"""The track's data: 50,000 images of CIFAR-10's training set in three parts, and the fixed feature classifier."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from minidiff.data import open_dataset
from minidiff.data.dataset import Dataset, subset
from minidiff.errors import MinidiffError
from minidiff.evaluation.feature_classifier import FeatureClassifier
from minidiff.formats.weights import open_safetensors
from minidiff.models.classifier import Classifier

SHAPE, CLASSES = (32, 32, 3), 10
SIZES = 40_000, 5_000, 5_000  # to train on, to select recipes by, for the final score
SEED = 25  # of the permutation that splits them
WIDTHS = (32, 64, 128, 256)  # of the classifier
WEIGHTS = Path(__file__).with_name("classifier.safetensors")


class Splits(NamedTuple):
    """The parts of the data. A recipe is trained on `train` and chosen by its score against `selection`."""

    train: Dataset
    selection: Dataset
    final: Dataset


def open_splits(data: str, sizes: tuple[int, int, int] = SIZES) -> Splits:
    """The parts of a dataset, by a random permutation that depends on nothing but its size.

    Raises MinidiffError unless it has that many images of CIFAR-10's shape, in ten classes.
    """
    whole = open_dataset(data)
    if (len(whole), whole.shape, len(whole.classes)) != (sum(sizes), SHAPE, CLASSES):
        raise MinidiffError(f"{data}: is not CIFAR-10's training set, {sum(sizes)} images of 32x32; give that")
    order = np.random.default_rng(SEED).permutation(len(whole))
    return Splits(*(subset(whole, np.sort(part)) for part in np.split(order, np.cumsum(sizes)[:-1])))


def open_classifier(train: Dataset, backend: str = "numba", path: Path = WEIGHTS) -> FeatureClassifier:
    """The classifier of the committed weights, which were trained once on `Splits.train`."""
    classifier = Classifier(SHAPE[2], CLASSES, None, backend, WIDTHS)
    stored, metadata = open_safetensors(path)
    classifier.check_shapes({name: a.shape for name, a in stored.items()})
    classifier.load_state_dict({name: a.read() for name, a in stored.items()})
    return FeatureClassifier(classifier, train, float(metadata["accuracy"]), int(metadata["tested"]))
