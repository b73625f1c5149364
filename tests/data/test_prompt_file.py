"""Prompts of a file: one a line, and a line that is none is named."""

import pytest
from small_runs import refused

from minidiff.data import prompt_file
from minidiff.data.prompt_file import read_prompts


@pytest.mark.parametrize("before, end", [(b"", b"\n"), (b"\xef\xbb\xbf", b"\r\n")])
def test_one_a_line_blank_lines_skipped(tmp_path, before, end):
    path = tmp_path / "prompts.txt"
    path.write_bytes(before + end.join([b"a red bar", b"", b" \t ", "ein grüner Balken ".encode(), b""]))
    assert read_prompts(path) == ["a red bar", "ein grüner Balken"]


@pytest.mark.parametrize(
    "content, match",
    [
        (b"", "prompts.txt: holds no prompt; write one a line"), (b" \n\n", "prompts.txt: holds no prompt"),
        (b"a\n\nb\xff\n", "prompts.txt, line 3: is not UTF-8; save"), ("a".encode("utf-16"), "line 1: is not UTF-8"),
        (b"a\nb\0c", "line 2: holds control characters; remove them"), (b"a\nb\x1b[2J", "line 2: holds control"),
    ],
)  # fmt: skip
def test_lines_that_are_no_prompts(tmp_path, content, match):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    refused(read_prompts, path, match=match)


def test_files_that_are_no_prompts(tmp_path, monkeypatch):
    refused(read_prompts, tmp_path / "missing", match="missing: no such file; give a text file with one prompt a line")
    refused(read_prompts, tmp_path, match="no such file")
    monkeypatch.setattr(prompt_file, "LARGEST", 3)
    (tmp_path / "large").write_text("long")
    refused(read_prompts, tmp_path / "large", match="large: is larger than 0 MB")
