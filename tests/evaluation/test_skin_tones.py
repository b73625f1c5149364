"""Skin tones: palettes, and the nearest palette of real, noisy and plain images."""

import numpy as np
import pytest

from minidiff.data import open_dataset
from minidiff.data.dataset import from_arrays
from minidiff.data.emoji import TONES, name_and_tone
from minidiff.errors import MinidiffError
from minidiff.evaluation.skin_tones import COLOURS, nearest_tone, palettes

# Two people of five tones, side by side with a shirt that is always green.
SKIN = np.array([[250, 220, 190], [224, 187, 149], [186, 141, 104], [165, 108, 67], [112, 83, 74]], np.uint8)


def person(tone, face):
    image = np.full((8, 8, 3), 255, np.uint8)
    image[face] = SKIN[tone]
    image[6:] = 0, 200, 0
    return image


def people(tones=range(5)):
    faces = (slice(1, 5), slice(2, 6))
    images = [person(tone, face) for face in faces for tone in tones]
    captions = [f"{name}, {TONES[tone]} skin tone" for name in ("cook", "judge") for tone in tones]
    return from_arrays("people", np.stack(images), np.zeros(len(images), int), ("x",), captions=tuple(captions))


@pytest.fixture(scope="module")
def emoji():
    train, test = open_dataset("emoji"), open_dataset("emoji", split="test")
    return palettes(train), test.take(np.arange(len(test))), [name_and_tone(caption)[1] for caption in test.captions]


def test_a_palette_holds_skin_and_neither_clothes_nor_background():
    np.testing.assert_array_equal(palettes(people())[:, 0], SKIN)


def test_every_held_out_image_has_the_tone_of_its_caption(emoji):
    colours, images, tones = emoji
    assert colours.shape == (5, COLOURS, 3)
    assert nearest_tone(images, colours).tolist() == tones


def test_noise_changes_few_tones(emoji):
    """Gaussian noise of 8 grey values, which is SIGMA, in every channel."""
    colours, images, tones = emoji
    noisy = (images + np.random.default_rng(0).normal(0, 8, images.shape)).clip(0, 255).astype(np.uint8)
    assert (nearest_tone(noisy, colours) == tones).sum() >= 0.95 * len(tones)


def test_an_image_without_skin_has_no_tone(emoji):
    colours, _, _ = emoji
    plain = np.zeros((3, 32, 32, 3), np.uint8)
    plain[0], plain[1] = 255, (0, 0, 255)
    plain[2, :, :16] = SKIN[3]
    assert nearest_tone(plain, colours).tolist() == [-1, -1, 3]
    assert nearest_tone(plain[:0], colours).shape == (0,)


def test_a_dataset_without_five_tones_is_refused():
    for dataset in (people(tones=range(4)), from_arrays("none", np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1), ("x",))):
        with pytest.raises(MinidiffError, match=f"{dataset.name}: no caption names a person in all five skin tones"):
            palettes(dataset)
