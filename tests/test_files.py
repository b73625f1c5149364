"""Files that are written whole or not at all."""

import os
import tempfile
from pathlib import Path

import pytest
from small_runs import refused, tree

from minidiff.errors import MinidiffError
from minidiff.files import check_new_folder, new_folder, read_json, replace_file


def test_json_errors(tmp_path):
    refused(read_json, tmp_path / "missing.json", dict, match="missing.json: No such file")
    refused(read_json, tmp_path, dict, match="Is a directory|Permission denied")


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
    """Such as /proc, which says that it may be written."""

    def refuse(*_, **__):
        raise FileNotFoundError(2, "No such file or directory", "a name that nobody gave")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    match = r"new: cannot be written \(No such file or directory\); choose another place$"
    refused(new_folder(tmp_path / "new").__enter__, match=match)


@pytest.mark.parametrize("name", [".", "file", "file/new", "full", "link", "x" * 300, "new/" + "x" * 300])
def test_where_no_new_folder_can_be(tmp_path, monkeypatch, name):
    """Neither what is there already nor the current folder, which would be replaced; nothing is made to find out."""
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
