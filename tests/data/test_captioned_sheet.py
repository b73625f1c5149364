"""Images with words under them."""

import numpy as np
import pytest

from minidiff.data.captioned_sheet import GAP, captioned_sheet, labelled_grid
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


def grid_parts(grid, rows, columns, images):
    """The labels' left and top part, and a check that all images are in their places."""
    grid = np.asarray(grid)
    left, top = grid.shape[1] - columns * (96 + GAP), grid.shape[0] - rows * (96 + GAP)
    for i, image in enumerate(images):
        y, x = top + i // columns * (96 + GAP), left + i % columns * (96 + GAP)
        np.testing.assert_array_equal(grid[y : y + 96, x : x + 96], image)
    return grid[top:, :left], grid[:top, left:]


def test_rows_and_columns_have_labels():
    images = np.concatenate([IMAGES, IMAGES[:1]])
    left, above = grid_parts(labelled_grid(images, ["a cat", ""], ["seed 0", "", "seed 7"]), 2, 3, images)
    assert (left[: 96 + GAP] != PAPER).any() and (left[96 + GAP :] == PAPER).all()
    written = [(above[:, i * (96 + GAP) :][:, :96] != PAPER).any() for i in range(3)]
    assert written == [True, False, True]
    assert (left[:, -GAP // 2 :] == PAPER).all() and (left[: 40 - GAP] == PAPER).all()  # in the middle of its row


@pytest.mark.parametrize("text", ["wheelchair " * 300, "W" * 500, "a W" * 3, "\n" * 9, "i " * 400])
def test_long_labels_stay_in_their_places(text):
    """Of a row's label the beginning is shown; that of a column has lines enough for all."""
    left, above = grid_parts(labelled_grid(IMAGES[:2], [text, "b"], [text[:120]]), 2, 1, IMAGES[:2])
    assert (left[96 : 96 + GAP] == PAPER).all() and (left[:, -GAP // 2 :] == PAPER).all()
    assert (above[:2] == PAPER).all() and (above[:, -GAP // 2 :] == PAPER).all()
    assert (left[:96] != PAPER).any() == bool(text.strip())


def test_grids_of_images_of_any_size():
    for shape in ((2, 8, 5, 1), (2, 512, 300, 3)):
        images = np.zeros(shape, np.uint8)
        grid = np.asarray(labelled_grid(images, ["a long prompt", "b"], ["seed 0"]))
        assert (grid == 0).all(-1).sum() >= images.size // shape[3]
