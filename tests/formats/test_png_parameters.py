"""The "parameters" of PNG files: the form that viewers know, read back; files that hold something else."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from minidiff.data.imaging import save_image
from minidiff.errors import MinidiffError
from minidiff.formats.png_parameters import Parameters, parse, read_parameters

IMAGE = Image.fromarray(np.zeros((2, 3, 3), np.uint8))
# AUTOMATIC1111's own pattern of a setting, and how many it wants to see in the last line
THEIRS = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def file_with(path, text, keyword="parameters"):
    info = PngInfo()
    info.add_text(keyword, text)
    IMAGE.save(path, pnginfo=info)
    return path


def test_the_form_is_that_of_automatic1111():
    given = Parameters({"Steps": "20", "Sampler": "ddim", "CFG scale": "7", "Class": "cat, sat"}, ("a cat",), "blurred")
    want = 'a cat\nNegative prompt: blurred\nSteps: 20, Sampler: ddim, CFG scale: 7, Class: "cat, sat"'
    assert str(given) == want
    assert len(THEIRS.findall(want.split("\n")[-1])) == 4


def test_their_own_images_are_read():
    text = (
        "a (black:1.2) cat,\nsitting\nNegative prompt: blurred, \nbad\nSteps: 20, Sampler: Euler a, CFG scale: 7, "
        'Seed: 965400086, Size: 512x768, Model hash: fe4efff1e1, Lora hashes: "a: 1, b: 2", '
        'Hashes: {"vae": "735e", "lora:a": "1"}, Version: v1.9.0'
    )
    read = parse(text)
    assert (read.prompts, read.negative) == (("a (black:1.2) cat, sitting",), "blurred,  bad")
    wanted = {"Steps": "20", "Sampler": "Euler a", "CFG scale": "7", "Seed": "965400086", "Size": "512x768"}
    assert read.settings | wanted | {"Lora hashes": "a: 1, b: 2", "Version": "v1.9.0"} == read.settings


TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=30).map(str.strip)


@settings(deadline=None)
@given(st.lists(TEXT, max_size=3), TEXT, st.dictionaries(st.sampled_from(["Class", "LoRA", "Seeds"]), TEXT))
def test_what_is_written_is_read(prompts, negative, settings):
    parameters = Parameters({"Steps": "3", **settings}, tuple(prompts), negative if prompts else "")
    assert parse(str(parameters)) == parameters


def test_a_prompt_may_look_like_another_part():
    for prompts in (("Negative prompt: x",), ("Steps: 3, Seed: 9",), ("a", "Negative prompt: x"), ("",), ("", "")):
        parameters = Parameters({"Steps": "3"}, prompts, "")
        assert parse(str(parameters)) == parameters


def test_line_breaks_in_a_prompt_become_spaces():
    assert parse(str(Parameters({"Steps": "3"}, ("a\n\r\nb", "c"), "d\ne"))).prompts == ("a b", "c")


def test_a_file_and_back(tmp_path):
    parameters = Parameters({"Steps": "3", "Seed": "7"}, ("schwarze Kätzchen 猫",), "größer")
    save_image(IMAGE, tmp_path / "a.png", str(parameters))
    assert read_parameters(tmp_path / "a.png") == parameters
    save_image(IMAGE, tmp_path / "a.jpg", str(parameters))  # other formats have none
    save_image(IMAGE, tmp_path / "plain.png")
    with Image.open(tmp_path / "plain.png") as plain:
        assert "parameters" not in plain.info


@pytest.mark.parametrize(
    "text, match",
    [
        ("", "do not end with a line of settings"), ("a cat", "do not end with a line of settings"),
        ("a cat\nSteps 20", "do not end with a line of settings"), ("\x00\x01\xff", "hold control characters"),
        ("a \x1b[31mcat\nSteps: 20", "hold control characters"), ("a" * 100_000, "have 100000 characters, more than"),
        ('a\nSteps: 20, Seed: "3', 'the value "3, which is no string'), ("a\nSteps: 20, Prompts: 3", "count 3"),
        ("a\nSteps: 20, Prompts: nan", "count nan"),
    ],
)  # fmt: skip
def test_texts_that_are_refused(tmp_path, text, match):
    path = file_with(tmp_path / "a.png", text)
    with pytest.raises(MinidiffError, match=match) as caught:
        read_parameters(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


def test_files_that_are_refused(tmp_path):
    (tmp_path / "no.png").write_bytes(b"no image")
    IMAGE.save(tmp_path / "a.jpg")
    whole = file_with(tmp_path / "whole.png", "a\nSteps: 3").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:50])
    file_with(tmp_path / "other.png", "a\nSteps: 3", "Comment")
    for name, match in (
        ("no.png", "cannot be read as a PNG"), ("a.jpg", "cannot be read as a PNG"), ("missing.png", "no such file"),
        ("", "no such file"), ("cut.png", "cannot be read as a PNG|has no parameters"),
        ("other.png", "has no parameters"),
    ):  # fmt: skip
        with pytest.raises(MinidiffError, match=match):
            read_parameters(tmp_path / name)
