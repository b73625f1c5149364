"""minidiff redraw, fill, invert and between."""

import re

import numpy as np
import pytest
from PIL import Image
from small_commands import QUICK, SMALL, bytes_of
from small_text import new_text_run

import minidiff as md
from minidiff.sampling.inputs import load_network_input
from minidiff.training import state


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


def test_fill_with_resampling(done, trained, drawing_to_edit):
    for resample in (1, 3):
        done("fill", "run", "picture.png", "mask.png", "--n", 3, "--steps", 10, "--resample", resample, *QUICK)
        original, *filled = sheet_tiles("sheet.png", 2)
        for tile in filled:
            np.testing.assert_array_equal(tile[:, 48:], original[:, 48:])
    assert len({tile.tobytes() for tile in filled}) == 3
    again = bytes_of("sheet.png")
    done("fill", "run", "picture.png", "mask.png", "--n", 3, "--steps", 10, *QUICK)
    once = bytes_of("sheet.png")
    done("fill", "run", "picture.png", "mask.png", "--n", 3, "--steps", 10, "--resample", 1, *QUICK)
    assert bytes_of("sheet.png") == once != again


def round_trip_errors(printed):
    return [float(error) for error in re.findall(r"([0-9.e-]+) with [0-9]+", printed)]


def test_invert(done, trained, drawing_to_edit):
    """The noise that is written is that from which the image is sampled."""
    printed = done("invert", "run", "picture.png", "--npz", "noise.npz", *QUICK)
    assert printed.endswith("Wrote sheet.png and noise.npz\n") and "200/200" in printed
    plain, iterated = round_trip_errors(printed)
    assert iterated < 1 and iterated < plain / 10
    with np.load("noise.npz") as file:
        x_T = file["arr_0"]
    assert x_T.shape == (1, 4, 4, 1) and x_T.dtype == np.float32
    opened = md.open_pipeline("run", "numpy")
    rng, sampler = np.random.default_rng(0), md.Sampler("ddim", clip=None)
    *_, (_, x_0, _) = md.sample(opened.unet, opened.schedule, x_T.shape, rng, 50, sampler, x_T=x_T)
    x0 = load_network_input("picture.png", (4, 4, 1))
    assert 127.5 * np.abs(x_0 - x0).mean() == pytest.approx(iterated, rel=0.01, abs=1e-4)
    with Image.open("sheet.png") as sheet:
        assert sheet.width == 4 * (96 + 8) + 8
    printed = done("invert", "run", "picture.png", "--fixed-point", 0, "--steps", 4, *QUICK)
    assert "8/8" in printed and len(round_trip_errors(printed)) == 1


def test_invert_and_change_the_class(done, refused, data, drawing_to_edit):
    done("train", data, "--out", "run", "--steps", 3, "--by-class", *SMALL)
    done("invert", "run", "picture.png", "--class", 3, "--to-class", 7, "--steps", 4, *QUICK)
    with Image.open("sheet.png") as sheet:
        assert sheet.width == 5 * (96 + 8) + 8
    done("invert", "run", "picture.png", "--class", 3, "--steps", 4, *QUICK)
    needs_one = "run: was trained by class; give the class of the image"
    refused("invert", "run", "picture.png", *QUICK, match=needs_one)
    refused("invert", "run", "picture.png", "--class", "all", *QUICK, match=needs_one)
    refused("invert", "run", "picture.png", "--class", "cat", *QUICK, match="run: has no class 'cat'; choose from")
    refused("invert", "run", "picture.png", "--class", 3, "--to-class", "x", *QUICK, match="run: has no class 'x'")


def test_what_cannot_be_inverted(refused, trained, drawing_to_edit):
    state.export(new_text_run(trained / "text"), trained / "net", False)
    refused("invert", "net", "picture.png", *QUICK, match="net: holds a text-conditional U-Net")
    refused("invert", "run", "missing.png", *QUICK, match="missing.png: no such image file")
    refused("invert", "run", "picture.png", "--to-class", "cat", *QUICK, match="run: was not trained by class")
    refused("invert", "run", "picture.png", "--npz", "noise.txt", *QUICK, match="noise.txt: is to be a NumPy archive")
    refused("invert", "run", "picture.png", "--out", "picture.png", *QUICK, match="picture.png")
    for option, value in (("--fixed-point", -1), ("--fixed-point", 1001), ("--steps", 0), ("--steps", 1001)):
        refused("invert", "run", "picture.png", option, value, *QUICK, match=option.strip("-"))


def test_between_two_images(done, refused, trained, drawing_to_edit):
    """The ends of the row are the images."""
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (4, 4), dtype=np.uint8)).save("other.png")
    done("between", "run", "--from", "picture.png", "--to", "other.png", "--n", 3, "--steps", 20, *QUICK)
    first, middle, last = sheet_tiles("sheet.png", 3)
    for tile, name in ((first, "picture.png"), (last, "other.png")):
        with Image.open(name) as image:
            np.testing.assert_allclose(tile[12::24, 12::24, 0].astype(int), np.asarray(image), rtol=0, atol=1)
    assert (first != middle).any() and (middle != last).any()
    for end in ("--from", "--to"):
        refused("between", "run", end, "picture.png", *QUICK, match="--from and --to go together")
    refused("between", "run", "--from", "picture.png", "--to", "none.png", *QUICK, match="none.png: no such image")
    refused("between", "run", "--from", "sheet.png", "--to", "other.png", *QUICK, match="sheet.png")


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
        refused(command, "run", "picture.png", *more, "--resample", 0, *QUICK, match="'--resample'")
        refused(command, "run", "picture.png", *more, "--resample", 2, "--prompt", "a", match="--resample does not go")
