"""Runs that an earlier version wrote, with other names in its code: they resume, sample and export as they did.

tests/training/old_runs/ holds a run of each kind at step 4, its training images, and losses.json: the losses of six
steps of each, as that version computed them. The images (n, H, W, C) that it sampled are in unet.npz and text.npz.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from minidiff.data.npz import read_npz

OLD = Path(__file__).parent / "old_runs"
DATA = {"unet": "images", "vae": "images", "text": "captioned"}


@pytest.fixture
def old_runs(tmp_path, monkeypatch):
    """A copy of them, which is the current folder."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")


def losses(run):
    lines = Path(run, "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,loss,grad_norm,lr,loss_q1,loss_q2,loss_q3,loss_q4" and [
        line.split(",")[0] for line in lines[1:]
    ] == list("123456")
    return [float(line.split(",")[1]) for line in lines[1:]]


@pytest.mark.parametrize("kind", DATA)
def test_they_resume(run, old_runs, kind):
    """To rounding: another processor's BLAS may add up in another order."""
    code, out, err = run("train", "--out", kind, "--resume", "--steps", 6)
    assert (code, err) == (0, "") and "Done: step 6" in out
    want = json.loads(Path("losses.json").read_text())[kind]
    np.testing.assert_allclose(losses(kind), want, rtol=1e-5)


@pytest.mark.parametrize("kind, more", [("unet", ()), ("text", ("--prompt", "red dot"))])
def test_they_sample(run, old_runs, kind, more):
    options = ("--steps", 3, "--n", 2, "--backend", "numpy", "--threads", 1, "--npz", "now.npz")
    code, _, err = run("sample", kind, *options, *more)
    assert (code, err) == (0, "")
    difference = np.abs(read_npz(Path("now.npz")).astype(int) - read_npz(Path(f"{kind}.npz")))
    assert difference.max() <= 1


@pytest.mark.parametrize("kind", DATA)
def test_they_are_exported(run, old_runs, kind):
    code, out, err = run("export", kind, "exported")
    assert (code, err) == (0, "") and "of step 4" in out
    for weights in Path(kind).rglob("*model.safetensors"):
        assert (Path("exported") / weights.relative_to(kind)).read_bytes() == weights.read_bytes()
