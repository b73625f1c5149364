import numpy as np
import pytest
from small_runs import bars

from minidiff.data.dataset import from_arrays
from minidiff.evaluation.feature_classifier import Classified
from minidiff.evaluation.prompt_agreement import agreement, nearest_captions

WIDE = np.array([[1000, 0], [-1000, 0], [990, 3], [-990, 3]], np.float32)  # the second feature varies by little


class Eyes:
    """A judge whose features are two numbers that are hidden in a picture's first pixel."""

    def classify(self, images):
        return Classified(images, WIDE[images[:, 0, 0, 0] % 4] + images[:, 0, 0, 1:2], np.zeros(len(images), int))


def hidden(numbers):
    images = np.zeros((len(numbers), 4, 4, 3), np.uint8)
    images[:, 0, 0, :2] = numbers
    return images


def test_the_nearest_in_all_directions_alike():
    """A shift by 3 is all that tells top from bottom, and little to left and right; unscaled it is less than the 10."""
    captions = ("right", "left", "top right", "top left")
    train = from_arrays("four", hidden([(i, 0) for i in range(4)]), np.zeros(4), ("x",), captions=captions)
    assert nearest_captions(hidden([(3, 0), (1, 3), (0, 3), (1, 1)]), train, Eyes()) == (
        "top left", "top left", "top right", "left",
    )  # fmt: skip


def test_name_and_tone_are_counted_apart():
    prompts = ["cook, dark skin tone", "judge, light skin tone", "cook, medium skin tone", "pizza", "red heart"]
    found = ["cook, medium-dark skin tone", "mage, light skin tone", "cook", "pizza", "blue heart"]
    shares = agreement(prompts, found, np.array([4, 0, 1, -1, 2]))
    assert shares == {"name": 3 / 5, "tone": 2 / 3, "both": 1 / 3}
    assert agreement(["pizza"], ["pizza"], np.array([3])) == {"name": 1.0}
    with pytest.raises(ValueError, match="zip"):
        agreement(prompts, found[:-1], np.zeros(5))


def test_captions_of_a_judge_that_was_trained(monkeypatch):
    """Pictures that are in the set find themselves."""
    from minidiff.evaluation import feature_classifier

    for name, value in {"FEWEST": 20, "MOST": 20, "BATCH": 16}.items():
        monkeypatch.setattr(feature_classifier, name, value)
    plain = bars(200)
    images = plain.take(np.arange(200))
    train = from_arrays("bars", images, plain.labels, plain.classes, captions=tuple(map(str, range(200))))
    learned = feature_classifier.train_classifier(train, bars(10, seed=1), "numpy", lambda: None)
    _, first = np.unique(images.reshape(200, -1), axis=0, return_index=True)  # each picture once
    assert nearest_captions(images[first], train, learned) == tuple(map(str, first))
