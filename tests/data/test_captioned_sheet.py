"""Images with words under them."""

import numpy as np
import pytest

from minidiff.data.captioned_sheet import GAP, captioned_sheet
from minidiff.data.imaging import PAPER

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 96, 96, 3), dtype=np.uint8)


def test_images_stand_in_a_grid_above_their_words():
    sheet = np.asarray(captioned_sheet(IMAGES, ["one", "two", "", "four", "five"], columns=3))
    first, cell = sheet[GAP:], 96 + GAP
    for i in range(3):
        np.testing.assert_array_equal(first[:96, GAP + i * cell :][:, :96], IMAGES[i])
    below = [(first[96:120, GAP + i * cell :][:, :96] != PAPER).any() for i in range(3)]
    assert below == [True, True, False]
    assert sheet.shape[1] == 3 * cell + GAP
    rows = [top for top in range(len(sheet) - 96) if (sheet[top : top + 96, GAP : GAP + 96] == IMAGES[3]).all()]
    assert len(rows) == 1 and rows[0] > 96 + GAP


@pytest.mark.parametrize("words", [1, 3, 12])
def test_long_captions_are_broken_and_never_cut(words):
    """Nothing is written beside the image or into the margin below; the sheet grows."""
    text = " ".join(["wheelchair"] * words)
    sheet = np.asarray(captioned_sheet(IMAGES[:1], [text]))
    assert sheet.shape[1] == 96 + 2 * GAP
    assert (sheet[-GAP // 2 :] == PAPER).all() and (sheet[:, : GAP // 2] == PAPER).all()
    assert sheet.shape[0] > 96 + 3 * GAP + 10 * words


def test_near_square_and_grey():
    sheet = captioned_sheet(IMAGES[..., :1], ["a"] * 5)
    assert sheet.width == 3 * (96 + GAP) + GAP


def test_as_many_captions_as_images():
    with pytest.raises(ValueError):
        captioned_sheet(IMAGES, ["one"])
