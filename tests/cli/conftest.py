"""Fixtures of all tests of commands; small networks are faster on one thread."""

import re
import shutil
import sys

import numpy as np
import pytest
from one_thread import one_thread  # noqa: F401  for all tests of this folder
from PIL import Image
from small_commands import SMALL
from small_runs import idx_set, tree

from minidiff.cli import app
from minidiff.training.kinds import unet_run


@pytest.fixture
def done(run):
    """done(*arguments) -> what was printed, when all went well."""

    def done(*arguments):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        return out

    return done


@pytest.fixture
def refused(run, tmp_path):
    """refused(*arguments, match=...): one line, exit code 2, and no file is other than before."""

    def refused(*arguments, match):
        before = tree(tmp_path)
        code, _, err = run(*arguments)
        assert code == 2
        assert err.startswith("minidiff: ") and err.count("\n") == 1 and err.endswith("\n"), err
        assert re.search(match, err), err
        assert tree(tmp_path) == before

    return refused


@pytest.fixture(autouse=True)
def quick_previews(monkeypatch):
    monkeypatch.setattr(unet_run, "SHEET_IMAGES", 2)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def _trained(tmp_path_factory):
    """A folder with data, an IDX set, and run, three steps of training on it."""
    folder = tmp_path_factory.mktemp("trained")
    idx_set(folder / "data")
    arguments = ["train", "data", "--out", "run", "--steps", "3", *map(str, SMALL)]
    with pytest.MonkeyPatch.context() as patched, pytest.raises(SystemExit) as caught:
        patched.chdir(folder)
        patched.setattr(sys, "argv", ["minidiff", *arguments])
        patched.setattr(unet_run, "SHEET_IMAGES", 2)
        app.main()
    assert caught.value.code == 0
    return folder


@pytest.fixture
def trained(_trained, tmp_path):
    """The same in this test's own folder."""
    return shutil.copytree(_trained, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def data(tmp_path):
    return idx_set(tmp_path / "data")


@pytest.fixture
def drawing_to_edit(tmp_path):
    """A picture, and a mask that is white in its left half."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).save("picture.png")
    mask = np.zeros((4, 4), np.uint8)
    mask[:, :2] = 255
    Image.fromarray(mask).save("mask.png")
