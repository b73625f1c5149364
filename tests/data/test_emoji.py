import zipfile
from collections import Counter

import numpy as np
import pytest

from minidiff.data.emoji import FILE, HELD_OUT, TONES, emoji, held_out_captions, name_and_tone


@pytest.fixture(scope="module")
def splits():
    return emoji("train"), emoji("test")


def test_every_image_is_in_one_split_with_its_own_caption_and_class(splits):
    with np.load(FILE) as stored:
        images, captions, kinds = stored["images"], stored["captions"].tolist(), stored["subcategories"].tolist()
    assert sum(map(len, splits)) == len(images) == 3486
    found = Counter()
    for split in splits:
        assert len(split) == len(split.captions) and split.shape == (32, 32, 3) and not split.mirrors
        for i, image in enumerate(split.take(np.arange(len(split)))):
            found[image.tobytes(), split.captions[i], split.classes[split.labels[i]]] += 1
    assert found == Counter(zip((image.tobytes() for image in images), captions, kinds, strict=True))
    assert splits[0].classes == splits[1].classes and len(splits[0].classes) == 96


def test_no_flags_and_no_silhouettes_of_families(splits):
    with np.load(FILE) as stored:
        assert "Flags" not in stored["categories"]
    for split in splits:
        assert not [caption for caption in split.captions if caption.startswith("family")]


def test_what_is_held_out_is_never_trained_on_but_its_parts_are(splits):
    """65 images, 13 in each tone; every one's own name in the four other tones, and its tone on others."""
    train, test = splits
    assert not set(train.captions) & set(test.captions) and set(test.captions) <= set(held_out_captions())
    assert Counter(name_and_tone(caption)[1] for caption in test.captions) == dict.fromkeys(range(5), 13)
    for tone, names in HELD_OUT.items():
        assert {f"{name}, {tone} skin tone" for name in names} <= set(test.captions)
    for caption in test.captions:
        name, _ = name_and_tone(caption)
        others = [f"{name}, {tone} skin tone" for tone in TONES]
        assert [other in train.captions for other in others] == [other != caption for other in others]


def test_a_caption_is_a_name_and_a_tone():
    for i, tone in enumerate(TONES):
        assert name_and_tone(f"kiss: man, man, {tone} skin tone") == ("kiss: man, man", i)
    for caption in ("cook", "dark skin tone", "kiss: man, man", "handshake, light skin tone and dark skin tone", ""):
        assert name_and_tone(caption) == (caption, None)


def test_the_file_is_small_and_has_nothing_to_unpickle():
    assert FILE.stat().st_size < 2_600_000
    with zipfile.ZipFile(FILE) as archive:
        assert sum(entry.file_size for entry in archive.infolist()) < 13_000_000
    with np.load(FILE) as stored:
        assert not [name for name in stored if stored[name].dtype.hasobject]
