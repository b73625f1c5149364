"""minidiff train and sample on points; commands and options that are for images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_commands import QUICK, bytes_of, stop_after
from small_runs import contents, new_points_run, rows, tree

import minidiff as md
from minidiff.cli import training_bar
from minidiff.data.npz import read_npz
from minidiff.formats.networks import load_classes
from minidiff.training.kinds import points_run
from minidiff.training.kinds.points_run import CHOICES

SMALL = (*QUICK, "--batch-size", 8, "--width", 8, "--depth", 2)


def size_of(path):
    with Image.open(path) as image:
        return image.size


@pytest.fixture
def no_figures(monkeypatch):
    """A dot in the place of each figure that training draws."""
    monkeypatch.setattr(points_run, "SHEET_POINTS", 8)
    monkeypatch.setattr(points_run, "points_figure", lambda *given: Image.new("RGB", (1, 1)))


def test_train_and_sample(done, tmp_path):
    """With all that a run has, its figures drawn."""
    out = done("train", "swiss_roll", "--out", "run", "--steps", 3, *SMALL)
    assert "swiss_roll: 10000 points in 2-D, 1 class" in out and "256 of the test split" in out
    assert "MLP: 522 parameters" in out and "fixed points" in out and "images" not in out
    assert out.splitlines()[-1].endswith("minidiff sample run")
    assert [row.split(",")[0] for row in rows(tmp_path / "run")] == ["1", "2", "3"]
    assert set(tree(tmp_path / "run")) == {
        ".lock", "checkpoints.csv", "loss.png", "metrics.csv", "mlp", "mlp/config.json",
        "mlp/diffusion_pytorch_model.safetensors", "samples", "samples/step-000003.png", "scheduler",
        "scheduler/scheduler_config.json", "training", "training/best.safetensors",
        "training/state-000000.safetensors", "training/state-000003.safetensors", "training/state.safetensors",
    }  # fmt: skip
    assert size_of("run/samples/step-000003.png") == (1500, 1020)
    for name, seed in {"one": 0, "two": 0, "other": 1}.items():
        sizes = ("--n", 30, "--steps", 4, "--seed", seed)
        assert f"Wrote {name}.png and {name}.npz" in done(
            "sample", "run", "--out", f"{name}.png", "--npz", f"{name}.npz", *sizes, *QUICK
        )
    points = [np.load(f"{name}.npz")["arr_0"] for name in ("one", "two", "other")]
    assert points[0].shape == (30, 1, 1, 2) and points[0].dtype == np.float32
    assert bytes_of("one.png") == bytes_of("two.png") != bytes_of("other.png")
    np.testing.assert_array_equal(points[0], points[1])
    assert size_of("one.png") == (1500, 1020)
    with pytest.raises(md.MinidiffError, match="arr_0 is float32"):
        read_npz("one.npz")


@pytest.mark.parametrize("objective", ["epsilon", "sample", "edm", "flow"])
def test_objectives(done, no_figures, objective):
    done("train", "line", "--out", "run", "--steps", 2, "--objective", objective, "--min-snr", 5, *SMALL)
    done("sample", "run", "--n", 8, "--steps", 4, "--out", "points.png", *QUICK)
    assert md.load_schedule("run").prediction_type == objective
    assert size_of("points.png") == (1800, 570)


def test_classes_and_guidance(done, refused, no_figures):
    """Drawn with other colours; of one class; with other samples where guidance is."""
    done("train", "two_clusters", "--out", "run", "--by-class", "--steps", 2, *SMALL)
    assert load_classes("run") == ("cat", "dog")
    samples = {}
    for name, more in {"all": (), "cat": ("--class", "cat"), "guided": ("--class", "cat", "--guidance", 4)}.items():
        done("sample", "run", "--n", 8, "--steps", 3, "--npz", f"{name}.npz", *more, *QUICK)
        samples[name] = np.load(f"{name}.npz")["arr_0"]
    np.testing.assert_allclose(samples["all"][:4], samples["cat"][:4], rtol=1e-5, atol=1e-6)
    assert (samples["all"][4:] != samples["cat"][4:]).any() and (samples["cat"] != samples["guided"]).any()
    refused("sample", "run", "--class", "cow", match="has no class 'cow'; choose from cat, dog, or all")
    refused("sample", "run", "--guidance", 101, match="--guidance 101: give a number from 0 to 100")
    done("train", "line", "--out", "plain", "--steps", 1, *SMALL)
    refused("sample", "plain", "--class", "line", match="was not trained by class")
    refused("train", "line", "--out", "new", "--by-class", match="line: has a single class; leave --by-class out")


def test_ctrl_c_and_resume(run, done, no_figures, monkeypatch):
    """The same bits as without an interruption, and other choices refused."""
    whole = ("train", "two_moons", "--steps", 5, *SMALL)
    done(*whole, "--out", "whole")
    with monkeypatch.context() as patched:
        patched.setattr(training_bar, "stoppable", stop_after(2))
        code, out, _ = run(*whole, "--out", "run")
    assert code == 130 and "Saved at step 2. To resume: minidiff train --out run --resume" in out
    done("train", "--out", "run", "--resume")
    assert contents(Path("run")) == contents(Path("whole"))
    assert "all 5 steps are done already" in done("train", "two_moons", "--out", "run", "--resume", *SMALL)


@pytest.mark.parametrize("arguments, match", [
    (("--width", 16), "was started with --width 8, not 16"), (("--depth", 3), "was started with --depth 2, not 3"),
    (("--text",), "was started without --text"), (("--recipe", "small-cpu"), "was started without --recipe"),
    (("--size", 1), "was started without --size"), (("swiss_roll",), "was started with line, not swiss_roll"),
])  # fmt: skip
def test_what_contradicts_the_run(refused, arguments, match):
    new_points_run(Path("run"))
    refused("train", "--out", "run", "--resume", *arguments, match=f"run: {match}")


@pytest.mark.parametrize("option", [
    ("--size", 8), ("--skip-bad",), ("--pad-crop", 1), ("--no-flip",), ("--recipe", "small-cpu"),
    ("--learned-variance",), ("--importance-sampling",),
])  # fmt: skip
def test_options_of_training_that_are_for_images(refused, option):
    match = f"{option[0]} is for images, and swiss_roll holds points: leave it out"
    refused("train", "swiss_roll", "--out", "run", *option, match=match)


@pytest.mark.parametrize("option", [
    ("--prompt", "a"), ("--negative-prompt", "a"), ("--height", 8), ("--width", 8), ("--folder", "new"),
    ("--gif", "a.gif"),
])  # fmt: skip
def test_options_of_sampling_that_are_for_images(refused, option):
    new_points_run(Path("run"))
    match = f"run: is the run of an MLP on points, which has no images; give no {option[0]}"
    refused("sample", "run", *option, match=match)


@pytest.mark.parametrize("arguments", [
    ("train-vae", "swiss_roll", "--out", "new"), ("train", "swiss_roll", "--text", "--out", "new"),
    ("evaluate", "unet", "--against", "swiss_roll"),
])  # fmt: skip
def test_points_where_images_are_needed(refused, folder, arguments):
    folder.rename("unet")
    refused(*arguments, match="swiss_roll: holds points, not images; give a dataset of images")


@pytest.mark.parametrize("options, match", [
    (("--width", 0), "hidden_size = 0 is not supported"), (("--depth", 65), "num_layers = 65 is not supported"),
    (("--steps", 0), "steps = 0"), (("--latent", "x"), "--latent needs --text"), (("--objective", "eps"), "'eps'"),
])  # fmt: skip
def test_bad_values(refused, options, match):
    refused("train", "line", "--out", "run", *options, match=match)


def test_a_run_without_its_state(refused, tmp_path):
    new_points_run(Path("run"))
    for path in (tmp_path / "run/training").iterdir():
        path.unlink()
    refused("sample", "run", match="run: holds no run")
    refused("sample", "run/mlp", match="run/mlp: ")


def test_help_lists_the_datasets_and_their_defaults(done):
    out = " ".join(done("train", "--help").split())
    assert "line, two_clusters, two_moons, swiss_roll" in out
    for name in ("steps", "batch-size", "lr", "warmup"):
        assert f"--{name} {CHOICES[name.replace('-', '_')]}" in out
