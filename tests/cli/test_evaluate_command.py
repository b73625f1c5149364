"""minidiff evaluate."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_commands import QUICK, SMALL, noises
from small_runs import idx_set, tree

from minidiff.evaluation import feature_classifier, report, samples


@pytest.fixture
def quick_classifier(monkeypatch, tmp_path_factory):
    """A feature classifier of two steps, cached outside the test's own folder."""
    kept = tmp_path_factory.mktemp("kept")
    for name, value in {
        "MIN_STEPS": 2,
        "MAX_STEPS": 2,
        "BATCH_SIZE": 4,
        "MIN_SAMPLES": 16,
        "user_cache_dir": lambda: kept,
    }.items():
        monkeypatch.setattr(feature_classifier, name, value)
    monkeypatch.setattr(samples, "MIN_IMAGES", 8)
    monkeypatch.setattr(report, "MIN_IMAGES", 8)
    monkeypatch.setattr(report, "BOUND_IMAGES", 4)
    monkeypatch.setattr(report, "BOUND_TIMESTEPS", 2)


@pytest.fixture
def real(trained, quick_classifier):
    """The set of `trained`, and pictures to test with."""
    return idx_set(trained / "data", n=40, prefix="t10k")


def test_evaluate(done, real, tmp_path):
    few = ("--n", 16, "--steps", 2, *QUICK)
    out = done("evaluate", "run", "--against", "data", "--out", "new/folder", *few)
    assert "Training a classifier of data, once" in out
    assert "16 of run, weights moving average, of step 3, ddim in 2 steps, guidance 1, seed 0\n" in out
    assert "16 of data, the other half\n" in out and "20 of data, half of the test split\n" in out
    assert re.search(r"classifier   trained on 10 of data, accuracy [0-9.]+ % on 40 others\n", out)
    report = json.loads(Path("new/folder/figures.json").read_text())
    assert report["samples"] == {
        "of": "run", "n": 16, "weights": "moving average, of step 3", "sampler": "ddim", "steps": 2, "guidance": 1.0,
        "seed": 0,
    }  # fmt: skip
    for side in ("samples", "baseline"):
        figures = report["figures"][side]
        assert set(figures) == {"frechet", "kid", "precision", "recall", "nearest", "colour"}
        assert f"{figures['frechet']:.4f}" in out and f"{figures['nearest']:.4f}" in out
    assert report["bits_per_dim"]["n"] == 4 and f"{report['bits_per_dim']['mean']:.3f} ± " in out
    with Image.open("new/folder/neighbours.png") as sheet:
        assert sheet.size[0] == 8 * 100 + 4
    assert len(list(Path("new/folder/samples").iterdir())) == 16
    assert len(list(Path("new/folder/reference").iterdir())) == 20
    assert not list(tmp_path.glob("new/.*"))
    assert "Training" not in done("evaluate", "run", "--against", "data", *few)


def test_evaluate_few_samples(done, real, monkeypatch):
    """What needs no classifier, and a word on the rest."""
    monkeypatch.setattr(feature_classifier, "MIN_SAMPLES", 17)
    monkeypatch.setattr(feature_classifier, "train_classifier", None)
    out = done("evaluate", "run", "--against", "data", "--n", 16, "--steps", 2, "--out", "new", *QUICK)
    assert "16 samples are too few to train a classifier for; distances, precision, recall and agreement are" in out
    assert "classifier   none, for fewer than 17 samples\n" in out and "Training" not in out and "KID" not in out
    report = json.loads(Path("new/figures.json").read_text())
    assert report["classifier"] is None and report["bits_per_dim"]["n"] == 4
    assert all(list(side) == ["nearest", "colour"] for side in report["figures"].values())


def test_evaluate_with_a_classifier_of_other_data(done, refused, tmp_path, quick_classifier):
    """Of a flat folder, whose images are of a single class."""
    noises(tmp_path / "flat", n=81)
    for kind in "ab":
        noises(tmp_path / "pets" / kind, n=45)
    done("train", "flat", "--out", "run", "--steps", 1, *SMALL)
    evaluation = ("evaluate", "run", "--against", "flat", "--n", 16, "--steps", 2, *QUICK)
    refused(*evaluation, match="flat: has a single class, and a classifier needs two; give --classifier")
    out = done(*evaluation, "--classifier", "pets")
    assert re.search(r"classifier   trained on 81 of pets, accuracy [0-9.]+ % on 9 others\n", out)
    assert "Fréchet distance" in out and "reference    73 of flat" in out
    refused(*evaluation, "--classifier", "nothing", match="nothing: no such folder or file, and no built-in dataset")


def test_evaluate_what_is_drawn_already(done, refused, real):
    """The figures are those of the run that drew it, by either way to the file."""
    done("sample", "run", "--n", 16, "--steps", 2, "--npz", "a.npz", *QUICK)
    done("evaluate", "run", "--n", 16, "--steps", 2, "--against", "data", "--out", "drawn", *QUICK)
    for i, path in enumerate(("a.npz", "drawn/samples.npz")):
        out = done("evaluate", path, "--against", "data", "--out", f"read{i}", *QUICK)
        assert f"samples      16 of {path}\n" in out and "bits" not in out and "sampling" not in out
        drawn, read = (json.loads(Path(f, "figures.json").read_text()) for f in ("drawn", f"read{i}"))
        assert read["figures"] == drawn["figures"] and read["bits_per_dim"] is None
    refused("evaluate", "a.npz", "--against", "data", "--steps", 3, match="a.npz: is an archive of images; leave --n")
    refused("evaluate", "a.npz", "--against", "data", "--raw", match="a.npz: is an archive of images; leave --n")
    refused("evaluate", "a.npz", "--against", "data", "--ema", 50, match="a.npz: is an archive of images; leave --n")
    refused(
        "evaluate",
        "run",
        "--against",
        "data",
        "--ema",
        0.1,
        match="run: --ema 0.1: the kept checkpoints .* choose 138,",
    )
    np.savez("few.npz", np.zeros((7, 4, 4, 1), np.uint8))
    refused("evaluate", "few.npz", "--against", "data", match="few.npz: holds 7 images; evaluation needs at least 8")
    Path("text.npz").write_text("x")
    refused("evaluate", "text.npz", "--against", "data", match="text.npz: cannot be read as images")


def test_evaluate_raw_weights(done, real):
    reports = {}
    for name, more in {"average": (), "raw": ("--raw",)}.items():
        done("evaluate", "run", "--n", 16, "--steps", 2, "--against", "data", "--out", name, *more, *QUICK)
        reports[name] = json.loads(Path(name, "figures.json").read_text())
    assert reports["raw"]["samples"]["weights"] == "last, of step 3"
    assert reports["raw"]["figures"]["samples"] != reports["average"]["figures"]["samples"]
    assert reports["raw"]["figures"]["baseline"] == reports["average"]["figures"]["baseline"]
    assert reports["raw"]["bits_per_dim"] != reports["average"]["bits_per_dim"]
    done("evaluate", "run", "--n", 16, "--steps", 2, "--against", "data", "--out", "ema", "--ema", 138, *QUICK)
    report = json.loads(Path("ema", "figures.json").read_text())
    assert report["samples"].pop("weights") == "moving average of half-life 138, of step 3"
    assert reports["average"]["samples"].pop("weights") == "moving average, of step 3"
    assert report == reports["average"]
    done("export", "run", "exported", "--raw")
    done("evaluate", "exported", "--n", 16, "--steps", 2, "--against", "data", "--out", "stored", *QUICK)
    stored = json.loads(Path("stored/figures.json").read_text())
    assert stored["samples"]["weights"] == "as stored" and stored["figures"] == reports["raw"]["figures"]


def test_evaluate_by_class(done, refused, data, quick_classifier):
    idx_set(data, n=40, prefix="t10k")
    done("train", "data", "--out", "run", "--steps", 1, "--by-class", *SMALL)
    out = done("evaluate", "run", "--against", "data", "--n", 25, "--steps", 2, "--guidance", 2, "--out", "new", *QUICK)
    report = json.loads(Path("new/figures.json").read_text())
    agreement = report["figures"]["samples"]["agreement"]
    assert list(agreement) == list("0123456789") and "guidance 2" in out
    assert report["samples"]["n"] == 25 and set(agreement.values()) <= {0, 1 / 3, 1 / 2, 2 / 3, 1}
    assert out.count("class agreement, ") == 10
    shutil.copytree("data", "fashion")
    refused("evaluate", "run", "--against", "fashion", match="run: its classes are not those of fashion; evaluate what")


def test_bad_pictures_are_left_out_of_an_evaluation(done, refused, tmp_path, quick_classifier):
    for kind in "ab":
        noises(tmp_path / "pets" / kind, n=81)
    done("train", "pets", "--out", "run", "--steps", 1, *SMALL)
    (tmp_path / "pets" / "a" / "0.png").write_text("no picture")
    evaluation = ("evaluate", "run", "--against", "pets", "--n", 16, "--steps", 2)
    refused(*evaluation, match="pets/a/0.png: cannot be read as an image")
    assert "left out: pets/a/0.png" in done(*evaluation, "--skip-bad", *QUICK)


def test_what_cannot_be_evaluated(refused, real):
    against = ("evaluate", "run", "--against")
    refused(*against[:2], match="Missing option '--against'")
    refused(*against, "missing", match="missing: no such folder or file")
    idx_set(real.parent / "other", height=5, n=90)
    refused(*against, "other", match="other: its images are 4x5, not of size 4")
    idx_set(real.parent / "few", n=20)
    refused(*against, "few", match="few: its 20 images are too few .*; give at least 80")
    refused(*against, "data", "--out", "run", match="run: is there already; choose a new folder")
    refused(*against, "data", "--out", "data/t10k-images-idx3-ubyte/x", match="Not a directory.*choose another place")
    refused(*against, "data", "--n", 15, match="'--n'")
    refused(*against, "data", "--steps", 1001, match="steps must be .* 1000")
    refused(*against, "data", "--sampler", "eulr", match="^minidiff: sampler 'eulr' is unknown")
    refused(*against, "data", "--karras", match="karras is for euler, heun, .*, not for ddim")
    refused(*against, "data", "--guidance", 2, match="--guidance 2 is for networks that were trained by class")
    refused("evaluate", "missing", "--against", "data", match="missing: no such folder; give")
    shutil.copytree("run/unet", "net/unet")
    shutil.copytree("run/scheduler", "net/scheduler")
    refused("evaluate", "net", "--against", "data", "--raw", match="net: holds no run")


def test_an_evaluation_that_cannot_be_written_leaves_nothing(run, real, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "save_image", full)
    before = tree(tmp_path)
    code, out, err = run("evaluate", "run", "--against", "data", "--n", 16, "--steps", 2, "--out", "new", *QUICK)
    assert (code, tree(tmp_path)) == (2, before)
    assert "No space left on device" in err and "Fréchet" in out  # the figures are not lost


def test_evaluate_at_karras_sigmas(done, real):
    few = ("evaluate", "run", "--against", "data", "--n", 16, "--steps", 3, "--sampler", "dpmpp_2m", *QUICK)
    plain, karras = done(*few), done(*few, "--karras")
    assert "dpmpp_2m in 3 steps" in plain and "dpmpp_2m (karras) in 3 steps" in karras
    distances = [re.search(r"nearest neighbour distance +([0-9.]+)", out).group(1) for out in (plain, karras)]
    assert distances[0] != distances[1]
