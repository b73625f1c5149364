import json
import re

import numpy as np
import pytest
from PIL import Image

from minidiff.data import captions
from minidiff.data.folder import folder
from minidiff.errors import MinidiffError

TEXTS = {"a.png": "a grey cat", "b.png": 'a dog, "Rex",\nasleep', "c.jpg": "naïve 日本 🐈"}


def write_images(root, names):
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (40 * i, 0, 0)).save(root / name)


def write_csv(root, rows, header="file_name,text"):
    lines = [header, *(f'{name},"{text.replace(chr(34), 2 * chr(34))}"' for name, text in rows)]
    (root / "captions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_jsonl(root, rows):
    lines = [json.dumps({"file_name": name, "text": text, "other": [1]}) for name, text in rows]
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")


def refused(root, match):
    with pytest.raises(MinidiffError) as caught:
        folder(root)
    message = str(caught.value)
    assert "\n" not in message and str(root) in message
    assert re.search(match, message), message


@pytest.mark.parametrize("write", [write_csv, write_jsonl])
def test_each_image_has_the_caption_of_its_name(tmp_path, write):
    write_images(tmp_path, TEXTS)
    write(tmp_path, reversed(TEXTS.items()))
    dataset = folder(tmp_path)
    assert dataset.captions == tuple(TEXTS.values()) and len(dataset.captions) == len(dataset)
    assert not dataset.mirrors and dataset.classes == (tmp_path.name,)


@pytest.mark.parametrize("write", [write_csv, write_jsonl])
def test_classes_are_sub_folders_with_captions_too(tmp_path, write):
    write_images(tmp_path, ["y/a.png", "x/b.png", "x/a.png"])
    write(tmp_path, [("y/a.png", "one"), ("./x/a.png", "two"), ("x/b.png", "three")])
    dataset = folder(tmp_path)
    assert dataset.captions == ("two", "three", "one") and dataset.labels.tolist() == [0, 0, 1]


def test_no_file_no_captions(tmp_path):
    write_images(tmp_path, ["a.png"])
    (tmp_path / "labels.csv").write_text("a.png,1")
    dataset = folder(tmp_path)
    assert dataset.captions == () and dataset.mirrors


def test_a_spreadsheets_byte_order_mark_and_line_ends(tmp_path):
    write_images(tmp_path, ["a.png"])
    (tmp_path / "captions.csv").write_bytes(b"\xef\xbb\xbftext,file_name,n\r\n a cat ,a.png,7\r\n")
    assert folder(tmp_path).captions == (" a cat ",)


def test_images_left_out_take_their_captions_with_them(tmp_path):
    write_images(tmp_path, TEXTS)
    write_csv(tmp_path, TEXTS.items())
    (tmp_path / "b.png").write_bytes(b"no image")
    told = []
    dataset = folder(tmp_path, skip=told.append)
    assert len(told) == 1 and dataset.captions == (TEXTS["a.png"], TEXTS["c.jpg"])
    np.testing.assert_array_equal(dataset.take(np.arange(2))[:, 0, 0, 0] > 60, [False, True])


@pytest.mark.parametrize("write, first", [(write_csv, 2), (write_jsonl, 1)])  # the line of the first row
@pytest.mark.parametrize(
    "rows, match",
    [
        ([("a.png", "x")], r"has no caption for b\.png; add"),
        ([], r"has no caption for a\.png; add"),
        ([("a.png", "x"), ("b.png", "y"), ("c.png", "z")], r", line {2}: 'c\.png' is no image of the folder"),
        ([("a.png", "x"), ("b.png", "y"), ("../a.png", "z")], r", line {2}: '\.\./a\.png' is no image"),
        ([("a.png", "x"), ("b.png", "y"), ("a.png", "x")], r", line {2}: 'a\.png' has a caption already, in line {0}"),
        ([("a.png", "x"), ("./a.png", "y")], r", line {1}: 'a\.png' has a caption already"),
        ([("a.png", "x"), ("b.png", " ")], r", line {1}: text is empty; fill it in"),
        ([("", "x")], r", line {0}: file_name is empty"),
    ],
)
def test_captions_that_do_not_fit(tmp_path, write, first, rows, match):
    write_images(tmp_path, ["a.png", "b.png"])
    write(tmp_path, rows)
    refused(tmp_path, re.sub(r"{(\d)}", lambda m: str(first + int(m[1])), match))


@pytest.mark.parametrize(
    "content, match",
    [
        (b"", r"has no caption for a\.png"),
        (b"file,text\na.png,x\n", r", line 2: has no text named file_name; name the columns"),
        (b"file_name,caption\na.png,x\n", r", line 2: has no text named text; name the columns"),
        (b"a.png,a cat\nb.png,a dog\n", r", line 2: has no text named file_name"),
        (b"file_name,text\na.png\n", r", line 2: has no text named text"),
        (b"file_name,text\na.png,a cat, asleep\n", r", line 2: has more cells than the first line; put a caption"),
        (
            b'file_name,text\na.png,"a cat\n',
            r", line 2: cannot be read \(unexpected end of data\); close each quotation",
        ),
        (b'file_name,text\nb.png,"a\ncat"\na.png,"a cat\nc,d\n', r", line 4 to 5: cannot be read \(unexpected end"),
        (b'file_name,text\na.png,"a cat\nb.png,"x"\n', r", line 2 to 3: cannot be read .*; close each quotation mark"),
        (
            b'file_name,text\na.png,"a" cat\n',
            r', line 2: cannot be read \(.*; close each .*, and write "" for one within',
        ),
        (b'"file_name,text\na.png,x\n', r", line 1 to 2: cannot be read"),
        (b"file_name,text\na.png,x\nb.png,\xff\xfe\n", r", line 3: is not UTF-8 \(invalid start byte\); save"),
        (
            b"file_name,text\na.png," + b"x" * 200_000,
            r", line 2: cannot be read \(field larger than .*\); shorten it, or",
        ),
        (b"file_name;text\na.png;a cat\n", r", line 1: its columns are separated by ';'; separate them by commas"),
        (b"text\tfile_name\nx\ta.png\n", r", line 1: its columns are separated by '\\t'; separate them by commas"),
        ("file_name,text\na.png,x\n".encode("utf-16"), r", line 1: is UTF-16; save the file as UTF-8"),
        ("\ufefffile_name,text\n".encode("utf-16-be"), r", line 1: is UTF-16; save the file as UTF-8"),
        (b"file_name,text\na.png,a\0cat\n", r", line 2: its text holds '\\x00', which no caption has; remove it"),
        (b"file_name,text\na.png,\x1b[2Jcat\n", r", line 2: its text holds '\\x1b', which no caption has; remove it"),
    ],
)
def test_a_bad_csv(tmp_path, content, match):
    write_images(tmp_path, ["a.png"])
    (tmp_path / "captions.csv").write_bytes(content)
    refused(tmp_path, match)


GOOD = b'{"file_name": "a.png", "text": "x"}\n'


@pytest.mark.parametrize(
    "content, match",
    [
        (GOOD + b'{"file_name": "b.png", \n', ", line 2: is no JSON .*; correct or remove it"),
        (GOOD + b'["b.png", "y"]\n', ", line 2: is no object; write"),
        (GOOD + b'{"file_name": "b.png"}\n', ", line 2: has no text named text"),
        (GOOD + b'{"file_name": "b.png", "text": 7}\n', ", line 2: has no text named text"),
        (GOOD + b'{"file_name": ["b.png"], "text": "y"}\n', ", line 2: has no text named file_name"),
        (GOOD + b'{"file_name": "b.png", "text": "\\ud800"}\n', r", line 2: its text holds '\\ud800', which no"),
        (GOOD + b'{"file_name": "b.png", "text": "\\u0000"}\n', r", line 2: its text holds '\\x00', which no"),
        (b"[" * 100_000, r", line 1: is no JSON \("),
        (GOOD + b"\xff", r", line 2: is not UTF-8 \("),
        (GOOD.decode().encode("utf-16"), r", line 1: is UTF-16; save the file as UTF-8"),
    ],
)
def test_a_bad_jsonl(tmp_path, content, match):
    write_images(tmp_path, ["a.png", "b.png"])
    (tmp_path / "metadata.jsonl").write_bytes(content)
    refused(tmp_path, match)


def test_what_is_no_file_or_too_long_or_there_twice(tmp_path, monkeypatch):
    write_images(tmp_path, ["a.png"])
    (tmp_path / "captions.csv").mkdir()
    refused(tmp_path, "captions.csv: is no file; replace")
    (tmp_path / "captions.csv").rmdir()
    write_csv(tmp_path, [("a.png", "x")])
    assert folder(tmp_path).captions == ("x",)
    monkeypatch.setattr(captions, "MAX_BYTES", 24)
    refused(tmp_path, "captions.csv: has 25 bytes, more than 24; is it the right file")
    write_jsonl(tmp_path, [("a.png", "x")])
    refused(tmp_path, "has both captions.csv and metadata.jsonl; keep")
