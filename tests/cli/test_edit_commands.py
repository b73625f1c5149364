"""minidiff redraw, fill and between."""

import numpy as np
import pytest
from PIL import Image
from small_commands import QUICK


def sheet_tiles(path, columns):
    """The tiles of a sheet of 4x4 pictures, each as its 96 x 96 pixels."""
    with Image.open(path) as image:
        pixels = np.asarray(image)
    rows_, tile = pixels.shape[0] // 100, slice(4, 100)
    return [pixels[100 * r :, 100 * c :][tile, tile] for r in range(rows_) for c in range(columns)]


def test_redraw(done, trained, drawing_to_edit):
    assert "1/1" in done("redraw", "run", "picture.png", "--n", 3, "--steps", 10, "--strength", 0, *QUICK)
    same = sheet_tiles("sheet.png", 2)
    assert all(np.array_equal(tile, same[0]) for tile in same)
    done("redraw", "run", "picture.png", "--n", 3, "--steps", 10, "--strength", 0.9, *QUICK)
    changed = sheet_tiles("sheet.png", 2)
    np.testing.assert_array_equal(changed[0], same[0])  # the original comes first
    assert len({tile.tobytes() for tile in changed}) == 4


def test_fill(done, trained, drawing_to_edit):
    done("fill", "run", "picture.png", "mask.png", "--n", 3, "--steps", 10, *QUICK)
    original, *filled = sheet_tiles("sheet.png", 2)
    for tile in filled:
        np.testing.assert_array_equal(tile[:, 48:], original[:, 48:])
        assert np.any(tile[:, :48] != original[:, :48])


def test_between(done, trained):
    done("between", "run", "--n", 5, "--steps", 10, *QUICK)
    first, *_, last = tiles = sheet_tiles("sheet.png", 5)
    assert len(tiles) == 5 and np.any(first != last)
    done("between", "run", "--n", 2, "--steps", 10, "--out", "ends.png", *QUICK)
    for end, tile in zip(sheet_tiles("ends.png", 2), (first, last), strict=True):
        np.testing.assert_array_equal(end, tile)


@pytest.mark.parametrize("command", ["redraw", "fill"])
def test_what_cannot_be_edited(refused, trained, drawing_to_edit, command):
    more = ["mask.png"] if command == "fill" else []
    refused(command, "run", "missing.png", *more, *QUICK, match="missing.png")
    refused(command, "nothing", "picture.png", *more, *QUICK, match="nothing: no such folder")
    refused(command, "run", "picture.png", *more, "--class", "cat", *QUICK, match="was not trained by class")
    refused(command, "run", "picture.png", *more, "--out", "no/sheet.png", *QUICK, match="no such folder")
    if command == "redraw":
        refused(command, "run", "picture.png", "--strength", 2, *QUICK, match="strength must be from 0 to 1, not 2.0")
    else:
        refused(command, "run", "picture.png", "missing.png", *QUICK, match="missing.png")
