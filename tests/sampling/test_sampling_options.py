"""The options of the sampling commands: weights, classes, prompts, output files, masks."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from small_pipeline import saved
from small_runs import go_on, new_run, tree
from small_text import bars, new_text_run

from minidiff.data.captioned_sheet import captioned_sheet
from minidiff.data.imaging import load_image, sheet, to_float, to_uint8
from minidiff.diffusion.sampler import Sampler
from minidiff.formats.run_state import kept_states, read_state
from minidiff.formats.weights import WEIGHTS
from minidiff.sampling import inputs, outputs
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import image_to_image, inpaint
from minidiff.training import loop, state

QUICK = ("--steps", 2, "--backend", "numpy", "--threads", 1)
PROMPT = ("--prompt", "red bar")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of 6 steps with three checkpoints, of which the second is the best."""
    folder, losses = tmp_path_factory.mktemp("trained"), iter([0.2, 0.1, 0.3] * 2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "validation_loss", lambda run, dataset: next(losses))
        go_on(new_run(folder / "unet", steps=6), 2, keep=3)
        go_on(new_text_run(folder / "text", steps=6), 2, dataset=bars(), keep=3)
    return folder


@pytest.fixture(autouse=True)
def small(trained, tmp_path, monkeypatch):
    """The same in this test's own folder; an image and masks."""
    monkeypatch.chdir(shutil.copytree(trained, tmp_path, dirs_exist_ok=True))
    rng, mask = np.random.default_rng(0), np.zeros((8, 8), np.uint8)
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save("image.png")
    for name, columns in {"black": 0, "left": 4, "white": 8}.items():
        mask[:, :columns] = 255
        Image.fromarray(mask).save(f"{name}.png")


@pytest.fixture
def images(run):
    """images(*arguments) -> those that `minidiff sample` writes to an archive."""

    def images(*arguments):
        code, _, err = run("sample", *arguments, "--npz", "a.npz", *QUICK)
        assert (code, err) == (0, "")
        with np.load("a.npz") as file:
            return file["arr_0"]

    return images


@pytest.fixture
def refused(run):
    def refused(*arguments, match):
        before = tree(Path())
        code, _, err = run(*arguments)
        assert code == 2 and match in err and err.count("\n") == 1, err
        assert tree(Path()) == before

    return refused


# Weights


@pytest.mark.parametrize("folder, more", [("unet", ()), ("text", PROMPT)])
def test_images_of_other_weights(images, folder, more):
    """Those of a folder to which the same weights are exported."""
    kept = {step: state.build_run(read_state(path)) for step, path in kept_states(Path(folder)).items()}
    chosen = {"--raw": (kept[6], True), "--best": (kept[4], False), "--step 2": (kept[2], False)}
    distinct = {images(folder, *more).tobytes()}
    for i, (options, (run, raw)) in enumerate(chosen.items()):
        state.export(run, Path(f"exported{i}"), raw)
        got = images(folder, *more, *options.split())
        np.testing.assert_array_equal(got, images(f"exported{i}", *more))
        distinct.add(got.tobytes())
    assert len(distinct) == 4
    np.testing.assert_array_equal(images(folder, *more, "--step", 6), images(folder, *more))


def test_weights_that_cannot_be_chosen(refused):
    refused("sample", "unet", "--raw", "--step", 2, match="--raw and --step choose different weights: give one")
    refused("sample", "unet", "--raw", "--best", "--step", 2, match="--raw and --best and --step choose different")
    refused("sample", "unet", "--step", 3, match="step 3; choose one that is there: 2, 4, 6")
    state.export(state.open_run(Path("unet")), Path("net"))
    for option in (["--raw"], ["--best"], ["--step", 2]):
        refused("sample", "net", *option, match="net: holds no run")
    refused("sample", "text", *PROMPT, "--step", 3, match="text: keeps no checkpoint of step 3")


# Classes


@pytest.fixture
def by_class():
    """A network of three classes and none."""
    new_run(Path("classes"), num_class_embeds=4)
    Path("classes/classes.json").write_text('["a", "b", "c"]')


@pytest.mark.parametrize("n, counts", [(1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (4, [2, 1, 1]), (12, [4, 4, 4])])
def test_n_images_over_all_classes(n, counts, by_class):
    labels = inputs.class_labels(open_pipeline("classes", "numpy"), "all", n)
    assert len(labels) == n and (np.diff(labels) >= 0).all()
    np.testing.assert_array_equal(np.unique(labels, return_counts=True)[1], counts)
    if n % 3 == 0:
        np.testing.assert_array_equal(labels, np.repeat([0, 1, 2], n // 3))


def test_a_row_for_each_class_also_of_an_uneven_number(images, run, by_class):
    got = images("classes", "--class", "all", "--n", 4, "--out", "sheet.png")
    assert len(got) == 4
    want = sheet(got, columns=2, cells=[0, 1, 2, 4])
    np.testing.assert_array_equal(load_image("sheet.png"), np.asarray(want))
    for command in (["redraw", "classes", "image.png"], ["fill", "classes", "image.png", "left.png"]):
        assert run(*command, "--class", "all", "--n", 4, "--out", "edits.png", *QUICK)[0] == 0
        assert load_image("edits.png").shape == np.asarray(sheet(np.zeros((5, 4, 4, 1), np.uint8))).shape
    assert run("between", "classes", "--class", "all", "--n", 4, "--out", "row.png", *QUICK)[0] == 0
    assert load_image("row.png").shape == np.asarray(sheet(got, columns=4)).shape


def test_a_row_between_two_samples_is_of_one_class(run, by_class):
    """The first, unless another is named; of all only if they are asked for."""
    rows = {}
    for name in (None, "a", "b", "all"):
        assert (
            run("between", "classes", *(["--class", name] if name else []), "--n", 4, "--out", "a.png", *QUICK)[0] == 0
        )
        rows[name] = load_image("a.png").tobytes()
    assert rows[None] == rows["a"] and len(set(rows.values())) == 3


def test_long_rows_follow_one_another():
    labels = np.repeat([0, 1], 20)
    assert outputs.rows_by_class(labels) == {"columns": 16, "cells": list(range(40))}
    assert outputs.rows_by_class(None) == outputs.rows_by_class(np.zeros(3, int)) == {}


# Prompts


def test_several_prompts(images):
    """The images of the first are those that it has alone; the sheet has a row of each, with captions."""
    Path("prompts.txt").write_text("green bar\n\nblue bar\n")
    got = images("text", *PROMPT, "--prompts", "prompts.txt", "--n", 2, "--out", "rows.png")
    assert got.shape == (6, 8, 8, 3)
    np.testing.assert_array_equal(got[:2], images("text", *PROMPT, "--n", 2))
    captions = ["red bar"] * 2 + ["green bar"] * 2 + ["blue bar"] * 2
    np.testing.assert_array_equal(load_image("rows.png"), np.asarray(captioned_sheet(got, captions, 2)))
    np.testing.assert_array_equal(images("text", *PROMPT, "--prompt", "green bar", "--n", 2), got[:4])


def test_prompt_files_that_are_refused(refused):
    Path("prompts.txt").write_bytes(b"red bar\n\xff\n")
    refused("sample", "text", "--prompts", "prompts.txt", match="prompts.txt, line 2: is not UTF-8")
    refused("sample", "text", "--prompts", "missing.txt", match="missing.txt: no such file")


# Files


def test_a_file_of_prompts_is_not_overwritten(refused):
    for option, name in (("--out", "prompts.png"), ("--npz", "prompts.npz")):
        Path(name).write_text("red bar\n")
        refused("sample", "text", "--prompts", name, option, name, match=f"{name}: it is the input {name}; choose")


def test_two_processes_write_one_archive(monkeypatch):
    """The second begins and ends while the first writes."""
    first, second, savez = np.zeros((1, 2, 2, 3), np.uint8), np.ones((1, 2, 2, 3), np.uint8), np.savez

    def slow(file, images):
        monkeypatch.setattr(np, "savez", savez)
        monkeypatch.setattr(os, "getpid", lambda: 0)
        outputs.write_npz(Path("a.npz"), second)
        savez(file, images)

    monkeypatch.setattr(np, "savez", slow)
    outputs.write_npz(Path("a.npz"), first)
    with np.load("a.npz") as file:
        np.testing.assert_array_equal(file["arr_0"], first)


def test_images_that_are_not_finite_are_not_written(refused):
    """Of weights that are finite, but too large."""
    for folder in ("unet", "text"):
        path = Path(folder, "unet", WEIGHTS)
        save_file(
            {name: np.full_like(a, 3e38) if "conv_out" in name else a for name, a in load_file(path).items()}, path
        )
    for command in (
        ("sample", "unet"), ("redraw", "unet", "image.png"), ("between", "unet"), ("sample", "text", *PROMPT),
        ("redraw", "text", "image.png", *PROMPT), ("explain", "text", *PROMPT),
    ):  # fmt: skip
        refused(*command, *QUICK, match="samples hold values that are not finite; copy the weights, or train")


@pytest.mark.parametrize("folder, more", [("unet", ()), ("text", PROMPT)])
def test_single_files_in_a_folder(images, folder, more):
    got = images(folder, *more, "--n", 3, "--folder", "new/images")
    assert (
        sorted(tree(Path("new/images"))) == ["00000.png", "00001.png", "00002.png"] and not Path("sheet.png").exists()
    )
    for i, image in enumerate(got):
        np.testing.assert_array_equal(load_image(f"new/images/{i:05d}.png", image.shape[-1]), image)
    images(folder, *more, "--folder", "other", "--out", "both.png")
    assert Path("both.png").is_file() and Path("other/00000.png").is_file()


def test_a_folder_that_cannot_be_filled(run, refused, monkeypatch):
    refused("sample", "unet", "--folder", "text", match="text: is there already; choose a new folder")
    Path("new").mkdir()
    for option in ("--out", "--gif", "--npz"):
        name = f"new/a.{option[2:] if option != '--out' else 'png'}"
        refused(
            "sample", "unet", "--folder", "new", option, name, match=f"{name}: lies in new, which is to hold single"
        )

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minidiff.data.imaging.save_image", full)
    refused("sample", "unet", "--n", 3, "--folder", "images", *QUICK, match="No space left on device")


# Editing


def sheet_of(*images):
    return np.asarray(sheet(np.concatenate([to_uint8(image) for image in images])))


@pytest.mark.parametrize("latent", [False, True])
def test_edits_with_a_prompt(run, latent):
    """The very images of the functions, by DDIM; the original comes first."""
    new_text_run(Path("again"), latent=latent)
    parts, x0 = open_pipeline("again", "numpy"), to_float(load_image("image.png")[None])
    mask = np.arange(8).reshape(1, 8, 1).repeat(8, 0) < 4
    more = ("again", "image.png", "--n", 2, *PROMPT, "--negative-prompt", "blue", "--guidance", 3)
    rest = "blue", 3.0, 4
    sampler = Sampler(offset=1, clip=None if latent else 1.0)
    rng = np.random.default_rng(0)
    want = [image_to_image(parts, ["red bar"], x0, 0.8, *rest, rng, sampler) for _ in range(2)]
    quick = ("--steps", 4, *QUICK[2:])
    code, out, err = run("redraw", *more, "--strength", 0.8, *quick)
    assert (code, err) == (0, "") and "6/6" in out
    np.testing.assert_array_equal(load_image("sheet.png"), sheet_of(x0, *want))
    rng = np.random.default_rng(0)
    want = [inpaint(parts, ["red bar"], x0, mask, *rest, rng, sampler) for _ in range(2)]
    code, out, err = run("fill", more[0], more[1], "left.png", *more[2:], *quick)
    assert (code, err) == (0, "") and "8/8" in out
    np.testing.assert_array_equal(load_image("sheet.png"), sheet_of(x0, *want))


def test_the_strength_is_as_many_steps_with_a_prompt_as_without(run):
    """0.9 of 4 steps are 3, as in diffusers."""
    for more in (["unet", "image.png"], ["text", "image.png", *PROMPT]):
        code, out, _ = run("redraw", *more, "--strength", 0.9, "--n", 1, "--steps", 4, *QUICK[2:])
        assert code == 0 and "3/3" in out


def test_a_stable_diffusion_folder_can_be_edited_with(run, tmp_path):
    saved(tmp_path / "sd")
    for command in (["redraw", "sd", "image.png"], ["fill", "sd", "image.png", "left.png"]):
        code, out, _ = run(*command, "--prompt", "a cat", "--n", 1, "--steps", 3, "--threads", 1)
        assert code == 0 and "Wrote sheet.png" in out


def test_edits_with_a_prompt_that_are_refused(refused):
    for command in (["redraw", "{}", "image.png"], ["fill", "{}", "image.png", "left.png"]):
        of_text, of_unet = ([word.format(folder) for word in command] for folder in ("text", "unet"))
        refused(*of_text, match="text: is the run of a text-conditional U-Net, which needs a prompt; give --prompt")
        refused(
            *of_unet, *PROMPT, match="unet: is the run of a U-Net that takes no prompt; give a run of minidiff train"
        )
        refused(*of_unet, "--negative-prompt", "a", match="--negative-prompt needs a prompt: give --prompt too")
        refused(*of_text, *PROMPT, "--class", "a", match="--class does not go with a prompt")
        refused(*of_text, *PROMPT, "--guidance", "nan", match="guidance must be a number from 0 to 100")
    for strength in (1.5, "nan"):
        refused("redraw", "text", "image.png", *PROMPT, "--strength", strength, match="strength must be from 0 to 1")


@pytest.mark.parametrize("folder, more", [("unet", ()), ("text", PROMPT)])
def test_a_black_mask_is_refused_and_a_white_one_is_not(run, refused, folder, more):
    refused(
        "fill", folder, "image.png", "black.png", *more, *QUICK, match="black.png: the mask is black, with nothing to"
    )
    assert run("fill", folder, "image.png", "white.png", *more, *QUICK)[0] == 0
