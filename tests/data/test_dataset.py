import numpy as np
import pytest

from minidiff.data.dataset import fingerprint, from_arrays, slices, subset

IMAGES = np.random.default_rng(0).integers(256, size=(4, 5, 6, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 1, 0])


def test_a_part_keeps_image_label_and_caption_together():
    whole = from_arrays("four", IMAGES, LABELS, ("x", "y"), captions=("a", "b", "c", "d"))
    part = subset(subset(whole, np.array([3, 1, 2])), np.array([2, 0]))
    assert len(part) == 2 and part.captions == ("c", "d") and part.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(part.take(np.arange(2)), IMAGES[[2, 3]])


@pytest.mark.parametrize(("n", "parts"), [(0, []), (2, [2]), (3, [3]), (7, [3, 3, 1])])
def test_slices_cut_a_batch_in_order(n, parts):
    cut = list(slices(n, 3))
    assert [part.stop - part.start for part in cut] == parts
    assert [i for part in cut for i in range(n)[part]] == list(range(n))


def test_a_part_of_what_has_no_captions_has_none():
    whole = from_arrays("four", IMAGES, LABELS, ("x", "y"))
    assert whole.captions == subset(whole, np.array([1])).captions == ()


def test_a_fingerprint_tells_sets_apart_by_all_that_is_learned():
    captions = ("a", "b", "c", "d")
    whole = from_arrays("four", IMAGES, LABELS, ("x", "y"), captions=captions)
    assert fingerprint(whole) == fingerprint(from_arrays("moved", IMAGES.copy(), LABELS, ("x", "z"), captions=captions))
    darker = IMAGES.copy()
    darker[-1, -1, -1, -1] ^= 1
    others = [
        from_arrays("four", darker, LABELS, ("x", "y"), captions=captions),
        from_arrays("four", IMAGES[::-1], LABELS, ("x", "y"), captions=captions),
        from_arrays("four", IMAGES, 1 - LABELS, ("x", "y"), captions=captions),
        from_arrays("four", IMAGES, LABELS, ("x", "y"), captions=captions[::-1]),
        from_arrays("four", IMAGES.reshape(4, 6, 5, 3), LABELS, ("x", "y"), captions=captions),
        subset(whole, np.arange(3)),
    ]
    assert len({fingerprint(a) for a in (whole, *others)}) == 7
