"""minidiff sample with guidance by a classifier, by an earlier checkpoint, within an interval, rescaled."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from small_commands import QUICK, SMALL
from small_runs import idx_set

from minidiff.cli import app
from minidiff.diffusion.guidance import autoguided, classifier_gradient, classifier_guided
from minidiff.diffusion.model import as_model
from minidiff.diffusion.reverse import last_x_t, sample
from minidiff.formats.networks import load_classifier
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.outputs import finished
from minidiff.training.kinds import unet_run

FEW = ("--n", 2, "--steps", 3, *QUICK)


@pytest.fixture(scope="module")
def _runs(tmp_path_factory):
    """A run that keeps the checkpoints of steps 0, 2 and 3, one by class, and classifiers of images of two sizes."""
    folder = tmp_path_factory.mktemp("runs")
    idx_set(folder / "data")
    idx_set(folder / "other", height=8, width=8)
    short = ("--steps", 3, "--keep", 3, "--checkpoint-every", 2, *SMALL)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(unet_run, "SHEET_IMAGES", 2)
        for command in (
            ("train", "data", "--out", "run"),
            ("train", "data", "--out", "by_class", "--by-class"),
            ("train-classifier", "data", "--out", "clf"),
            ("train-classifier", "other", "--out", "clf8"),
        ):
            patched.setattr(sys, "argv", ["minidiff", *map(str, (*command, *short))])
            with pytest.raises(SystemExit) as caught:
                app.main()
            assert caught.value.code == 0
    return folder


@pytest.fixture
def runs(_runs, tmp_path):
    """The same in this test's own folder."""
    return shutil.copytree(_runs, tmp_path, dirs_exist_ok=True)


def images(done, *arguments):
    done("sample", *arguments, "--npz", "images.npz", *FEW)
    with np.load("images.npz") as file:
        return file["arr_0"]


def sampled(model, pipeline, labels=None):
    trajectory = sample(model, pipeline.schedule, (2, 4, 4, 1), np.random.default_rng(0), 3, pipeline.sampler, labels)
    return finished(last_x_t(trajectory))


def test_the_images_are_those_of_the_functions(done, runs):
    pipeline, weak = open_pipeline("run", "numpy"), open_pipeline("run", "numpy", 2)
    schedule = pipeline.schedule
    model, weak_model = (as_model(p.unet, schedule) for p in (pipeline, weak))
    gradient = classifier_gradient(load_classifier("clf", "numpy"), schedule)
    labels = np.full(2, 3)
    by_classifier = classifier_guided(model, schedule, gradient, 5.0, 0.5, (100, 700))
    found = images(
        done, "run", "--classifier", "clf", "--class", "3", "--guidance", 5, "--guidance-rescale", 0.5,
        "--guidance-interval", "100,700",
    )  # fmt: skip
    np.testing.assert_array_equal(found, sampled(by_classifier, pipeline, labels))
    by_weak = autoguided(model, weak_model, 2.0)
    found = images(done, "run", "--autoguide", 2, "--guidance", 2)
    np.testing.assert_array_equal(found, sampled(by_weak, pipeline))


def test_a_classifier_s_guidance_is_1_by_default_and_0_disables_it(done, runs):
    plain = images(done, "run")
    assert np.array_equal(images(done, "run", "--classifier", "clf", "--guidance", 0), plain)
    by_default = images(done, "run", "--classifier", "clf", "--class", "3")
    assert np.array_equal(by_default, images(done, "run", "--classifier", "clf", "--class", "3", "--guidance", 1))


def test_autoguidance_by_class(done, runs):
    guided = images(done, "by_class", "--class", "3", "--autoguide", 2, "--guidance", 100)
    assert not np.array_equal(guided, images(done, "by_class", "--class", "3"))


@pytest.mark.parametrize(
    "arguments, match",
    [
        ("run --classifier clf8", "clf8: is for 8x8 images of 1 channel, run samples 4x4 images of 1 channel"),
        ("run --classifier clf --class fish", "clf: has no class 'fish'; choose from 0, 1, "),
        ("run --classifier data", "data: no classifier/config.json"),
        ("run --classifier by_class", "by_class: is the run of a U-Net that takes no prompt; give a "),
        ("by_class --classifier clf", "by_class: was trained by class; leave --classifier out"),
        ("run --autoguide 1 --guidance 2", "run: keeps no checkpoint of step 1; choose one that is there: 0, 2, 3"),
        ("run --autoguide 2", "--autoguide has no effect without guidance"),
        ("run --autoguide 2 --classifier clf", "--classifier and --autoguide are two kinds of guidance"),
        ("run --guidance-rescale 0.5", "--guidance-rescale has no effect without guidance"),
        ("run --guidance-interval 1,2", "--guidance-interval has no effect without guidance"),
        ("run --classifier clf --guidance-rescale 2", "--guidance-rescale 2: give a number from 0 to 1"),
        ("run --classifier clf --guidance-interval 5", "--guidance-interval 5: give two timesteps"),
        ("run --classifier clf --guidance-interval 5,1", "--guidance-interval 5,1: give two timesteps"),
        ("run --classifier clf --guidance-interval nan,1", "--guidance-interval nan,1: give two timesteps"),
        ("run --classifier clf --guidance nan", "--guidance nan: give a number from 0 to 100"),
        ("run --prompt a --classifier clf", "with a prompt guidance is classifier-free"),
        ("run --prompt a --guidance-rescale 0.5", "with a prompt guidance is classifier-free"),
    ],
)  # fmt: skip
def test_guidance_that_is_refused(refused, runs, arguments, match):
    refused("sample", *arguments.split(), "--out", "sheet.png", match=match)
    assert not Path("sheet.png").exists()
