"""Prompt agreement: retrieval by whitened features, and fractions of names and tones."""

import numpy as np
import pytest
from small_runs import bars

from minidiff.data.dataset import from_arrays
from minidiff.evaluation.feature_classifier import Classified
from minidiff.evaluation.prompt_agreement import agreement, nearest_captions

WIDE = np.array([[1000, 0], [-1000, 0], [990, 3], [-990, 3]], np.float32)  # the second feature varies by little


class TwoFeatures:
    """A feature classifier that reads its two features from an image's first pixel."""

    def classify(self, images):
        return Classified(images, WIDE[images[:, 0, 0, 0] % 4] + images[:, 0, 0, 1:2], np.zeros(len(images), int))


def with_features(numbers):
    images = np.zeros((len(numbers), 4, 4, 3), np.uint8)
    images[:, 0, 0, :2] = numbers
    return images


def test_nearest_captions_weigh_all_directions_alike():
    """Only a shift by 3 separates top from bottom; without whitening it counts less than the 10 beside it."""
    captions = ("right", "left", "top right", "top left")
    train = from_arrays("four", with_features([(i, 0) for i in range(4)]), np.zeros(4), ("x",), captions=captions)
    assert nearest_captions(with_features([(3, 0), (1, 3), (0, 3), (1, 1)]), train, TwoFeatures()) == (
        "top left", "top left", "top right", "left",
    )  # fmt: skip


def test_agreement_of_name_and_tone():
    prompts = ["cook, dark skin tone", "judge, light skin tone", "cook, medium skin tone", "pizza", "red heart"]
    captions = ["cook, medium-dark skin tone", "mage, light skin tone", "cook", "pizza", "blue heart"]
    fractions = agreement(prompts, captions, np.array([4, 0, 1, -1, 2]))
    assert fractions == {"name": 3 / 5, "tone": 2 / 3, "both": 1 / 3}
    assert agreement(["pizza"], ["pizza"], np.array([3])) == {"name": 1.0}
    with pytest.raises(ValueError, match="zip"):
        agreement(prompts, captions[:-1], np.zeros(5))


def test_captions_by_a_trained_classifier(monkeypatch):
    """The nearest training image of a training image is itself."""
    from minidiff.evaluation import feature_classifier

    for name, value in {"MIN_STEPS": 20, "MAX_STEPS": 20, "BATCH_SIZE": 16}.items():
        monkeypatch.setattr(feature_classifier, name, value)
    plain = bars(200)
    images = plain.take(np.arange(200))
    train = from_arrays("bars", images, plain.labels, plain.classes, captions=tuple(map(str, range(200))))
    trained = feature_classifier.train_classifier(train, bars(10, seed=1), "numpy", lambda: None)
    _, first = np.unique(images.reshape(200, -1), axis=0, return_index=True)  # each image once
    assert nearest_captions(images[first], train, trained) == tuple(map(str, first))
