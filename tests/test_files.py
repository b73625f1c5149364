"""Files and folders that are written atomically, and the checks of output paths before the work begins."""

import os
import socket
import tempfile
from pathlib import Path

import pytest
from small_runs import refused, tree

from minidiff.errors import MinidiffError
from minidiff.files import check_file, check_new_folder, followed, new_folder, read_json, replace_file


def test_json_errors(tmp_path):
    refused(read_json, tmp_path / "missing.json", dict, match="missing.json: No such file")
    refused(read_json, tmp_path, dict, match="Is a directory|Permission denied")
    (tmp_path / "a.json").write_text("{")
    refused(read_json, tmp_path / "a.json", dict, match="a.json: not JSON; copy or write it again$")
    (tmp_path / "a.json").write_text('"a word"')
    refused(read_json, tmp_path / "a.json", int, match="a.json: invalid literal for int.*; copy or write it again$")


def test_replace_file(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    for content in ("one", "two"):
        replace_file(path, lambda part, content=content: part.write_text(content))
        assert tree(tmp_path) == {"new": None, "new/folder": None, "new/folder/file": content.encode()}


def test_a_leftover_part_is_written_over(tmp_path):
    (tmp_path / ".file.part").write_text("much longer than what comes")
    replace_file(tmp_path / "file", lambda part: part.write_text("short"))
    assert tree(tmp_path) == {"file": b"short"}


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    path.write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    def write(part):
        part.write_text("half")
        if call == "write":
            full()

    if call != "write":
        monkeypatch.setattr(os, call, full)
    refused(replace_file, path, write, match="file: cannot be written .*No space left on device")
    assert tree(tmp_path) == {"file": b"before"}


def test_a_folder_where_none_can_be_made(tmp_path, monkeypatch):
    """Such as /proc, where os.access allows writing."""

    def refuse(*_, **__):
        raise FileNotFoundError(2, "No such file or directory", "a temporary name")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    match = r"new: cannot be written \(No such file or directory\); choose another place$"
    refused(new_folder(tmp_path / "new").__enter__, match=match)


@pytest.mark.parametrize("name", [".", "file", "file/new", "full", "link", "x" * 300, "new/" + "x" * 300])
def test_where_no_new_folder_can_be(tmp_path, monkeypatch, name):
    """Existing files, full folders and the current folder, which would be replaced; the check makes nothing."""
    (tmp_path / "file").write_text("before")
    (tmp_path / "full" / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to("full")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty" if name == "." else tmp_path)
    before = tree(tmp_path)
    refused(check_new_folder, Path(name), match="choose (a new folder|another place)$")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["new", "deep/er/new", "empty", "link", "dangling"])
def test_a_new_folder(tmp_path, name):
    (tmp_path / "empty").mkdir()
    for link, target in {"link": "empty", "dangling": "new"}.items():
        (tmp_path / link).symlink_to(target)
    with new_folder(tmp_path / name) as folder:
        (folder / "file").write_text("x")
    assert (tmp_path / name / "file").read_text() == "x"
    assert (tmp_path / "link").is_symlink() and (tmp_path / "dangling").is_symlink()


def test_errors_in_a_new_folder_name_it(tmp_path):
    """By the name that it is to get, not by the one that it has until then."""

    def fill(write):
        with new_folder(tmp_path / "new") as folder:
            write(folder)

    def full(folder):
        raise MinidiffError(f"{folder / 'a'}: no space")

    refused(fill, full, match=f"^{tmp_path / 'new' / 'a'}: no space$")
    assert tree(tmp_path) == {}
    refused(fill, lambda _: (tmp_path / "new" / "b").mkdir(parents=True), match="new: cannot be .*choose a new folder")
    assert tree(tmp_path) == {"new": None, "new/b": None}


def test_an_interruption(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")

    def write(part):
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(path, write)
    assert tree(tmp_path) == {"file": b"before"}


@pytest.mark.parametrize("place", ["file/below", "file/below/deeper", "folder", "x" * 300])
def test_places_that_cannot_be_written(tmp_path, place):
    (tmp_path / "file").write_text("before")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    before = tree(tmp_path)
    refused(replace_file, tmp_path / place, lambda part: part.write_text("x"), match="cannot be written")
    assert tree(tmp_path) == before


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_output_files_may_be_new_or_exist(tmp_path, in_tmp_path):
    Path("earlier").write_text("x")
    Path("input").write_text("x")
    os.symlink("earlier", "link")
    os.symlink("new", "dangling")
    before = tree(tmp_path)
    for path in ("earlier", "new", "link", "dangling", tmp_path / "new", "é ☃", "x" * 230):
        check_file(path, "input", "missing")
    assert tree(tmp_path) == before


def test_an_input_by_any_name_is_refused(tmp_path, in_tmp_path):
    Path("cat.jpg").write_text("x")
    os.symlink("cat.jpg", "link.jpg")
    os.link("cat.jpg", "twin.jpg")
    os.symlink(tmp_path, "here")
    for path in ("cat.jpg", "./cat.jpg", tmp_path / "cat.jpg", "link.jpg", "twin.jpg", "here/cat.jpg"):
        refused(check_file, path, "other", "cat.jpg", match="it is the input cat.jpg; choose another name")
        refused(check_file, "cat.jpg", path, match="it is the input .*; choose another name")


def test_only_regular_files_are_replaced(in_tmp_path):
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
def test_places_where_no_file_can_be_made(tmp_path, in_tmp_path, path, match):
    if path.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("needs /proc")
    Path("folder").mkdir()
    Path("file").write_text("")
    before = tree(tmp_path)
    refused(check_file, path, match=f"cannot write {path}: ({match})")
    assert tree(tmp_path) == before


def test_a_folder_that_cannot_be_written(in_tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    refused(check_file, "a", match="cannot write a: Read-only file system; choose another place")


def test_followed(tmp_path, in_tmp_path):
    """Through links to folders and to files, existing or new."""
    Path("folder").mkdir()
    os.symlink("folder", "link")
    os.symlink("link/new", "chain")
    assert followed("chain") == followed("folder/new") == (tmp_path / "folder" / "new").resolve()


def test_the_current_folder_was_removed(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(MinidiffError, match="^a: the current folder was removed; change to one that is there"):
        check_file("a")
    check_file(tmp_path / "a")
