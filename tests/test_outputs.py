"""Places that a command is to write to, checked before it works."""

import os
import socket
import tempfile
from pathlib import Path

import pytest
from small_runs import refused, tree

from minidiff.outputs import check_file, followed


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_new_files_and_earlier_ones(tmp_path):
    Path("earlier").write_text("x")
    Path("input").write_text("x")
    os.symlink("earlier", "link")
    os.symlink("new", "dangling")
    before = tree(tmp_path)
    for path in ("earlier", "new", "link", "dangling", tmp_path / "new", "é ☃", "x" * 230):
        check_file(path, "input", "missing")
    assert tree(tmp_path) == before


def test_an_input_by_whatever_name(tmp_path):
    Path("cat.jpg").write_text("x")
    os.symlink("cat.jpg", "link.jpg")
    os.link("cat.jpg", "twin.jpg")
    os.symlink(tmp_path, "here")
    for path in ("cat.jpg", "./cat.jpg", tmp_path / "cat.jpg", "link.jpg", "twin.jpg", "here/cat.jpg"):
        refused(check_file, path, "other", "cat.jpg", match="it is the input cat.jpg; choose another name")
        refused(check_file, "cat.jpg", path, match="it is the input .*; choose another name")


def test_what_is_no_regular_file():
    os.mkfifo("fifo")
    os.symlink("loop", "loop")
    os.symlink("fifo", "link")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        for path in ("fifo", "loop", "link", "socket", "/dev/null"):
            refused(check_file, path, match=f"cannot write {path}: it is no regular file; choose another name")


@pytest.mark.parametrize(
    "path, match",
    [
        ("folder", "it is a folder"), (".", "it is a folder"), ("/", "it is a folder"), ("missing/a", "no such folder"),
        ("file/a", "no such folder"), ("x" * 300, "File name too long; choose another place"),
        ("x" * 254, "File name too long; choose another place"),
        ("x/" * 3000 + "x", "File name too long|no such folder"),
        ("/proc/a", "No such file or directory; choose another place"),
    ],
)  # fmt: skip
def test_impossible_places(tmp_path, path, match):
    if path.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("needs /proc")
    Path("folder").mkdir()
    Path("file").write_text("")
    before = tree(tmp_path)
    refused(check_file, path, match=f"cannot write {path}: ({match})")
    assert tree(tmp_path) == before


def test_a_folder_that_cannot_be_written(monkeypatch):
    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    refused(check_file, "a", match="cannot write a: Read-only file system; choose another place")


def test_the_current_folder_was_removed(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir("gone")
    (tmp_path / "gone").rmdir()
    refused(check_file, "a", match="a: the current folder was removed; change to one that is there")
    check_file(tmp_path / "a")


def test_followed(tmp_path):
    """Through links of folders and of files, to what there is or will be."""
    Path("folder").mkdir()
    os.symlink("folder", "link")
    os.symlink("link/new", "chain")
    assert followed("chain") == followed("folder/new") == (tmp_path / "folder" / "new").resolve()
