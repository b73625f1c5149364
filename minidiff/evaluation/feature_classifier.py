"""The judge: a classifier that learns from a set's own pictures, once, and is kept. Samples are seen with its eyes.

It is kept in the user's cache folder under a hash of the pictures and labels that it learned from and was tested on,
so that figures of one day can be set beside figures of another.
"""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from minidiff_kernels.cpu.jit import user_cache_dir

from minidiff.data.batches import batch, prefetch
from minidiff.data.dataset import Dataset, blocks, update_digest
from minidiff.data.imaging import to_float
from minidiff.engine.losses import cross_entropy
from minidiff.engine.optim import AdamW, learning_rate
from minidiff.engine.tensor import no_grad
from minidiff.errors import MinidiffError
from minidiff.formats.weights import open_safetensors, write_safetensors
from minidiff.models.classifier import Classifier
from minidiff.terminal import about, console, with_progress_bar

BATCH, LR, SEED = 64, 2e-3, 0
FEWEST, EPOCHS, MOST = 500, 16, 5000  # steps: as many as 16 times through the set take, but not beyond these
WORTH = 100  # samples; for fewer, which give poor figures anyway, no classifier is trained


@dataclass(frozen=True)
class FeatureClassifier:
    """A trained classifier, what it was trained on, and its accuracy on `tested` images that it was not trained on."""

    classifier: Classifier
    train: Dataset
    accuracy: float
    tested: int

    @property
    def facts(self) -> dict[str, Any]:
        """What figures.json says of it."""
        return {
            "of": self.train.name, "learned_from": len(self.train), "accuracy": self.accuracy, "tested_on": self.tested,
        }  # fmt: skip

    def classify(self, images: np.ndarray) -> "Classified":
        """Pictures (N, H, W, C) uint8 as it sees them."""
        features, called = [], []
        with no_grad():
            for start in range(0, len(images), 256):
                seen, logits = self.classifier.look(to_float(images[start : start + 256]))
                features.append(seen.numpy())
                called.append(logits.numpy().argmax(1))
        return Classified(images, np.concatenate(features), np.concatenate(called))


class Classified(NamedTuple):
    """Pictures (N, H, W, C) uint8, a judge's features of them (N, 96), and the classes (N,) it takes them for."""

    images: np.ndarray
    features: np.ndarray
    called: np.ndarray


def open_classifier(
    train: Dataset, test: Dataset, backend: str, samples: int | None = None
) -> FeatureClassifier | None:
    """The judge of a set: the one that is kept, or a new one, which takes minutes.

    None where none is kept and no new one is worth its time: for fewer than WORTH `samples`, if their number is given.
    Raises MinidiffError for a set of a single class, for a kept judge that is damaged, and, before anything is
    trained, for a cache folder that cannot be written.
    """
    single, few = len(train.classes) < 2, samples is not None and samples < WORTH
    if single and not few:
        raise MinidiffError(
            f"{train.name}: has a single class, and a classifier needs two; give --classifier with data of several, "
            "or sort it into sub-folders"
        )
    if single:
        return None
    path = with_progress_bar(
        "reading", -(-len(train) // 1024) - (-len(test) // 1024), lambda tick: cache_path(train, test, tick)
    )
    if path.is_file():
        return _kept(path, train, test, backend)
    if few:
        return None
    check_cache(path.parent)
    steps = num_steps(len(train))
    how_long = about(steps * seconds_per_step(train, backend))
    console.print(
        f"Training a classifier of {train.name}, once: {steps} steps, {how_long}; it is kept in {path.parent}"
    )
    judge = with_progress_bar("learning", steps, lambda tick: train_classifier(train, test, backend, tick))
    write_safetensors(path, judge.classifier.state_dict(), {"accuracy": repr(judge.accuracy)})
    return judge


def num_steps(pictures: int) -> int:
    """How many steps a judge of that many pictures learns."""
    return min(max(EPOCHS * pictures // BATCH, FEWEST), MOST)


def train_classifier(train: Dataset, test: Dataset, backend: str, tick: Callable[[], object]) -> FeatureClassifier:
    """Train a judge by AdamW on cross-entropy, and test the moving average of its weights; tick() after each step."""
    classifier, optimizer = _beginner(train, backend)
    steps = num_steps(len(train))
    batches = prefetch(lambda step: batch(train, step, BATCH, SEED, train.mirrors), range(1, steps + 1))
    for step, (x, labels) in enumerate(batches, start=1):
        optimizer.lr = learning_rate(LR, step, steps, warmup=steps // 10, decay_from=0.1)
        _step(classifier, optimizer, x, labels)
        tick()
    with optimizer.averaged():
        judge = FeatureClassifier(classifier.to(backend), train, 0.0, len(test))
    called = np.concatenate([judge.classify(images).called for images in blocks(test)])  # (len(test),)
    return replace(judge, accuracy=float((called == test.labels).mean()))


def seconds_per_step(train: Dataset, backend: str) -> float:
    """How long a step of `learn` takes: the fastest of three, the first of which may compile, of a scratch network."""
    (classifier, optimizer), seconds = _beginner(train, backend), []
    for step in range(1, 4):
        start = time.perf_counter()
        float(_step(classifier, optimizer, *batch(train, step, BATCH, SEED, train.mirrors)))  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _beginner(train: Dataset, backend: str) -> tuple[Classifier, AdamW]:
    """A classifier that has learned nothing yet, and its optimiser."""
    classifier = Classifier(train.shape[2], len(train.classes), np.random.default_rng(SEED), backend)
    return classifier, AdamW(classifier.parameters(), LR, weight_decay=0.05, clip=1.0, ema=0.99)


def _step(classifier: Classifier, optimizer: AdamW, x: np.ndarray, labels: np.ndarray) -> Any:
    """One step on images x (N, H, W, C) and labels (N,); returns the norm of the gradient (0-d)."""
    optimizer.zero_grad()
    cross_entropy(classifier(x), labels).backward()
    return optimizer.step()


def cache_path(train: Dataset, test: Dataset, tick: Callable[[], object]) -> Path:
    """Where the judge of these pictures is kept; tick() for each block of them, which may have to be drawn."""
    digest = hashlib.sha256(repr((BATCH, LR, SEED, FEWEST, EPOCHS, MOST, train.classes, train.mirrors)).encode())
    for dataset in (train, test):
        update_digest(digest, dataset, tick)
    return user_cache_dir() / "minidiff" / "classifiers" / f"{digest.hexdigest()[:16]}.safetensors"


def check_cache(folder: Path) -> None:
    """Raises MinidiffError if nothing can be kept there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise MinidiffError(f"{folder}: cannot be written; set XDG_CACHE_HOME to a folder that can")


def _kept(path: Path, train: Dataset, test: Dataset, backend: str) -> FeatureClassifier:
    """The judge that lies there. Raises MinidiffError if it is damaged."""
    classifier = Classifier(train.shape[2], len(train.classes), None, backend)
    try:
        stored, metadata = open_safetensors(path)
        classifier.check_shapes({name: a.shape for name, a in stored.items()})
        accuracy = float(metadata["accuracy"])
        if not 0 <= accuracy <= 1:
            raise ValueError("no share of pictures is so large")
        classifier.load_state_dict({name: a.read() for name, a in stored.items()})
    except (MinidiffError, KeyError, ValueError):
        raise MinidiffError(f"{path}: is damaged; remove it, and it is trained again") from None
    return FeatureClassifier(classifier, train, accuracy, len(test))
