"""minidiff sample --seeds: an image belongs to its seed, whatever the batch."""

from pathlib import Path

import numpy as np
import pytest
import small_pipeline
from PIL import Image
from small_commands import QUICK, SMALL

from minidiff.cli.sampling import prompts as sample_prompts
from minidiff.data.captioned_sheet import labelled_grid
from minidiff.sampling import inputs


@pytest.fixture
def sampled(done):
    def sampled(*arguments):
        """The images (N, H, W, C) that a command writes."""
        done("sample", *arguments, "--npz", "images.npz")
        with np.load("images.npz") as file:
            return file["arr_0"]

    return sampled


def assert_same(images, others):
    """Within 1 of 255 on 99.9 % of values: a batch of another size may round otherwise."""
    assert images.shape == others.shape
    difference = np.abs(images.astype(int) - others)
    assert np.mean(difference <= 1) >= 0.999


@pytest.mark.parametrize("noise", ["numpy", "torch"])
@pytest.mark.parametrize("sampler", [("ddim",), ("ddim", "--eta", 1), ("ddpm",), ("euler_ancestral",)], ids=str)
def test_a_seed_gives_its_image_in_every_batch(sampled, trained, noise, sampler, monkeypatch):
    settings = ("--steps", 4, "--noise", noise, "--sampler", *sampler, *QUICK)
    five = sampled("run", "--seeds", "0-4", *settings)
    assert len({image.tobytes() for image in five}) == 5
    assert_same(sampled("run", "--seeds", "3,1-2", *settings), five[[3, 1, 2]])
    assert_same(sampled("run", "--seed", 4, "--n", 1, *settings), five[4:])  # its seed alone
    monkeypatch.setattr(inputs, "BATCH_SIZE", 2)
    assert_same(sampled("run", "--seeds", "0-4", *settings), five)


def test_a_seed_has_its_class(sampled, done, data):
    """Of all classes a seed's is its remainder."""
    done("train", data, "--out", "run", "--steps", 3, "--by-class", *SMALL)
    settings = ("--steps", 2, *QUICK)
    images = sampled("run", "--seeds", "2,13", *settings)
    for seed, image in ((2, images[0]), (13, images[1])):
        assert_same(sampled("run", "--seeds", seed, "--class", seed % 10, *settings), image[None])


def test_files_are_named_after_seeds(done, trained):
    done("sample", "run", "--seeds", "7,123456,3", "--steps", 2, "--folder", "images", "--npz", "images.npz", *QUICK)
    assert {path.name for path in Path("images").iterdir()} == {"00003.png", "00007.png", "123456.png"}
    with np.load("images.npz") as file, Image.open("images/123456.png") as image:
        np.testing.assert_array_equal(np.asarray(image), file["arr_0"][1, ..., 0])


@pytest.mark.parametrize("noise", ["numpy", "torch"])
def test_seeds_of_prompts(sampled, tmp_path, capsys, noise):
    small_pipeline.saved(tmp_path / "sd")
    capsys.readouterr()  # a progress bar of diffusers
    settings = ("--steps", 2, "--noise", noise, *QUICK)
    images = sampled("sd", "--prompt", "a cat", "--prompt", "a dog", "--seeds", "4,9", "--folder", "each", *settings)
    assert len({image.tobytes() for image in images}) == 4
    names = ["00000-00004.png", "00000-00009.png", "00001-00004.png", "00001-00009.png"]
    assert sorted(path.name for path in Path("each").iterdir()) == names
    assert_same(sampled("sd", "--prompt", "a dog", "--seeds", "9", *settings), images[3:])
    assert_same(sampled("sd", "--prompt", "a dog", "--seed", 9, *settings), images[3:])


def test_a_grid_of_prompts_by_seeds(sampled, tmp_path, capsys, monkeypatch):
    """A row for each prompt, a column for each seed, with the same noise in a column."""
    small_pipeline.saved(tmp_path / "sd")
    capsys.readouterr()  # a progress bar of diffusers
    grids = []
    monkeypatch.setattr(sample_prompts, "labelled_grid", lambda *given: grids.append(given) or labelled_grid(*given))
    prompts = ("--prompt", "cat", "--prompt", "(cat:1)", "--prompt", "black")
    images = sampled("sd", *prompts, "--seeds", "4,9", "--steps", 2, "--out", "grid.png", *QUICK)
    ((shown, rows, columns),) = grids
    np.testing.assert_array_equal(shown, images)
    assert (rows, columns) == (["cat", "(cat:1)", "black"], ["seed 4", "seed 9"])
    np.testing.assert_array_equal(images[:2], images[2:4])
    assert (images[0] != images[1]).any()
    with Image.open("grid.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(labelled_grid(shown, rows, columns)))


def test_seeds_that_are_refused(refused, trained):
    refused("sample", "run", "--seeds", "0-3", "--n", 4, *QUICK, match="--seeds takes the place of --n: leave that out")
    refused("sample", "run", "--seeds", "0", "--seed", 0, *QUICK, match="--seeds takes the place of --seed")
    refused("sample", "run", "--seeds", "3-1", *QUICK, match="--seeds '3-1': give numbers and rising ranges")
    refused("sample", "run", "--seeds", "", *QUICK, match="--seeds '': give numbers and rising ranges")
