"""The feature classifier: trained once on a dataset's own images and cached; its features serve the metrics.

It is cached in the user's cache folder under a hash of its training and test images, their labels and its settings,
so that figures of different days are comparable.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from minidiff_kernels.cpu.jit import user_cache_dir

import minidiff.ranks as ranks
from minidiff.compilation import compile_ahead
from minidiff.data.batches import batch, prefetch
from minidiff.data.dataset import Dataset, blocks, slices, update_digest
from minidiff.data.imaging import to_float
from minidiff.engine.losses import cross_entropy
from minidiff.engine.optim import AdamW, learning_rate
from minidiff.engine.tensor import no_grad
from minidiff.errors import MinidiffError
from minidiff.formats.weights import open_safetensors, write_safetensors
from minidiff.models.classifier import Classifier
from minidiff.progress import progress

BATCH_SIZE, LR, SEED = 64, 2e-3, 0
MIN_STEPS, EPOCHS, MAX_STEPS = 500, 16, 5000  # training steps: EPOCHS epochs, within these limits
TOGETHER = 256  # images that are classified at once
MIN_SAMPLES = 100  # for fewer samples, whose metrics are poor anyway, no classifier is trained
OLD_PREFIX, PREFIX = "halvings.", "downsamplers."  # of weights in caches from before the attribute was renamed
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureClassifier:
    """A trained classifier, its training set, and its accuracy on `tested` images that it was not trained on."""

    classifier: Classifier
    train: Dataset
    accuracy: float
    tested: int

    @property
    def facts(self) -> dict[str, Any]:
        """Its entry in figures.json."""
        return {
            "of": self.train.name, "learned_from": len(self.train), "accuracy": self.accuracy, "tested_on": self.tested,
        }  # fmt: skip

    def classify(self, images: np.ndarray) -> "Classified":
        """Images (N, H, W, C) uint8 with their features and predicted classes.

        Ranks share out whole parts of TOGETHER images.
        """
        parts = list(slices(len(images), TOGETHER))
        own, features, predictions = parts[ranks.share(len(parts))], [], []
        with no_grad():
            for part in own or parts[:1]:  # a rank without a part needs the shapes
                f, logits = self.classifier.features_and_logits(to_float(images[part]))
                features.append(f.numpy())
                predictions.append(logits.numpy().argmax(1))
        of_this_rank = (np.concatenate(arrays)[: None if own else 0] for arrays in (features, predictions))
        return Classified(images, *map(ranks.concatenate, of_this_rank))


class Classified(NamedTuple):
    """Images (N, H, W, C) uint8, their features (N, D), and their predicted classes (N,)."""

    images: np.ndarray
    features: np.ndarray
    predictions: np.ndarray


def open_classifier(
    train: Dataset, test: Dataset, backend: str, samples: int | None = None
) -> FeatureClassifier | None:
    """The classifier of a dataset: the cached one, or a new one, which takes minutes to train; by rank 0 for all.

    None if none is cached and there are fewer than MIN_SAMPLES `samples` to evaluate. Raises MinidiffError for a
    dataset of a single class, for a damaged file in the cache, and, before training, for a cache folder that cannot be
    written.
    """
    single, few = len(train.classes) < 2, samples is not None and samples < MIN_SAMPLES
    if single and not few:
        raise MinidiffError(
            f"{train.name}: has a single class, and a classifier needs two; give --classifier with data of several, "
            "or sort it into sub-folders"
        )
    if single:
        return None
    with progress("reading", -(-len(train) // 1024) - (-len(test) // 1024)) as tick:
        path = cache_path(train, test, tick)
    if few and not ranks.broadcast(path.is_file()):
        return None
    if ranks.rank() > 0:
        unknown = Classifier(train.shape[2], len(train.classes), None, backend)
        return _as_of_rank_0(FeatureClassifier(unknown, train, 0.0, len(test)))
    with ranks.alone():
        if path.is_file():
            found = _cached(path, train, test, backend)
        else:
            check_cache(path.parent)
            found = _train_and_cache(path, train, test, backend)
    return _as_of_rank_0(found)


def _as_of_rank_0(own: FeatureClassifier) -> FeatureClassifier:
    """The classifier with the weights and the accuracy of rank 0's."""
    if ranks.size() > 1:
        weights = {name: a[: None if ranks.rank() == 0 else 0] for name, a in own.classifier.state_dict().items()}
        own.classifier.load_state_dict({name: ranks.concatenate(a) for name, a in weights.items()})
    return replace(own, accuracy=ranks.broadcast(own.accuracy))


def _train_and_cache(path: Path, train: Dataset, test: Dataset, backend: str) -> FeatureClassifier:
    """Train a classifier, and write it to the cache."""
    compile_ahead(backend, lambda: _step(*_untrained(train, backend), *_batch(train, 1)))
    steps = num_steps(len(train))
    duration = about(steps * seconds_per_step(train, backend))
    log.info(f"Training a classifier of {train.name}, once: {steps} steps, {duration}; cached in {path.parent}")
    with progress("training", steps) as tick:
        trained = train_classifier(train, test, backend, tick)
    write_safetensors(path, trained.classifier.state_dict(), {"accuracy": repr(trained.accuracy)})
    return trained


def about(seconds: float) -> str:
    """A duration in rounded seconds or minutes."""
    return f"about {max(round(seconds), 1)} s" if seconds < 90 else f"about {round(seconds / 60)} minutes"


def num_steps(images: int) -> int:
    """Training steps on a training set of that many images."""
    return min(max(EPOCHS * images // BATCH_SIZE, MIN_STEPS), MAX_STEPS)


def train_classifier(train: Dataset, test: Dataset, backend: str, tick: Callable[[], object]) -> FeatureClassifier:
    """Train by AdamW on cross-entropy, and test the moving average of the weights; tick() after each step."""
    classifier, optimizer = _untrained(train, backend)
    steps = num_steps(len(train))
    batches = prefetch(lambda step: _batch(train, step), range(1, steps + 1))
    for step, (x, labels) in enumerate(batches, start=1):
        optimizer.lr = learning_rate(LR, step, steps, warmup=steps // 10, decay_from=0.1)
        _step(classifier, optimizer, x, labels)
        tick()
    optimizer.p[...] = optimizer.ema  # the classifier's weights are views of p
    trained = FeatureClassifier(classifier, train, 0.0, len(test))
    predictions = np.concatenate([trained.classify(images).predictions for images in blocks(test)])  # (len(test),)
    return replace(trained, accuracy=float((predictions == test.labels).mean()))


def seconds_per_step(train: Dataset, backend: str) -> float:
    """Duration of a training step of a new network: the shortest of three."""
    (classifier, optimizer), seconds = _untrained(train, backend), []
    for step in range(1, 4):
        start = time.perf_counter()
        float(_step(classifier, optimizer, *_batch(train, step)))  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _batch(train: Dataset, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of a step (1, 2, ...)."""
    return batch(train, step, BATCH_SIZE, SEED, train.mirrors)


def _untrained(train: Dataset, backend: str) -> tuple[Classifier, AdamW]:
    """A classifier with initial weights, and its optimiser."""
    classifier = Classifier(train.shape[2], len(train.classes), np.random.default_rng(SEED), backend)
    return classifier, AdamW(classifier.parameters(), LR, weight_decay=0.05, clip=1.0, ema=0.99)


def _step(classifier: Classifier, optimizer: AdamW, x: np.ndarray, labels: np.ndarray) -> Any:
    """One training step on images x (N, H, W, C) and labels (N,); returns the gradient norm (0-d)."""
    optimizer.zero_grad()
    cross_entropy(classifier(x), labels).backward()
    return optimizer.step()


def cache_path(train: Dataset, test: Dataset, tick: Callable[[], object]) -> Path:
    """The classifier's file in the cache; tick() after each block of images that is hashed."""
    settings = (BATCH_SIZE, LR, SEED, MIN_STEPS, EPOCHS, MAX_STEPS, train.classes, train.mirrors)
    digest = hashlib.sha256(repr(settings).encode())
    for dataset in (train, test):
        update_digest(digest, dataset, tick)
    return user_cache_dir() / "minidiff" / "classifiers" / f"{digest.hexdigest()[:16]}.safetensors"


def check_cache(folder: Path) -> None:
    """Make the cache folder. Raises MinidiffError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise MinidiffError(f"{folder}: cannot be written; set XDG_CACHE_HOME to a folder that can")


def _cached(path: Path, train: Dataset, test: Dataset, backend: str) -> FeatureClassifier:
    """Read a classifier from the cache. Raises MinidiffError if its file is damaged."""
    classifier = Classifier(train.shape[2], len(train.classes), None, backend)
    try:
        stored, metadata = open_safetensors(path)
        stored = {name.replace(OLD_PREFIX, PREFIX): a for name, a in stored.items()}
        classifier.check_shapes({name: a.shape for name, a in stored.items()})
        accuracy = float(metadata["accuracy"])
        if not 0 <= accuracy <= 1:
            raise ValueError("accuracy must be from 0 to 1")
        classifier.load_state_dict({name: a.read() for name, a in stored.items()})
    except (MinidiffError, KeyError, ValueError):
        raise MinidiffError(f"{path}: is damaged; remove it to train the classifier again") from None
    return FeatureClassifier(classifier, train, accuracy, len(test))
