"""minidiff import, minidiff export --single-file, and single files in the place of folders."""

import re
from pathlib import Path

import numpy as np
import pytest
from small_commands import QUICK, bytes_of
from small_single_file import arrays_of, saved, write_raw
from small_text import new_text_run

from minidiff.formats.single_file.writing import export_single_file

PROMPT = ("--prompt", "a black cat", "--steps", 2, "--height", 32, "--width", 32, *QUICK)


@pytest.fixture(scope="module")
def _made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for version in ("1", "2"):
        export_single_file(saved(folder / f"folder{version}", version), folder / f"{version}.safetensors")
    return folder


@pytest.fixture
def made(_made, tmp_path):
    """folder1, folder2 and their files 1.safetensors and 2.safetensors in this test's own folder, as links."""
    for path in _made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def test_a_file_is_imported_exported_and_sampled(done, made):
    out = done("import", "1.safetensors", "--out", "again")
    layout = "weights, in the layout of Stable Diffusion 1.x; prediction type epsilon"
    assert re.fullmatch(rf"Wrote again: [\d,]+ {layout}\n", out)
    assert done("export", "again", "two.safetensors", "--single-file") == "Wrote two.safetensors\n"
    assert arrays_of(Path("two.safetensors")) == arrays_of(Path("1.safetensors"))
    for model in ("1.safetensors", "folder1", "again"):
        done("sample", model, *PROMPT, "--npz", f"{Path(model).stem}.npz")
    assert bytes_of("1.npz") == bytes_of("folder1.npz") == bytes_of("again.npz")
    assert np.load("1.npz")["arr_0"].shape == (1, 32, 32, 3)


def test_a_file_in_float16(done, made):
    done("export", "folder2", "half.safetensors", "--single-file", "--half")
    assert {dtype for dtype, _, _ in arrays_of(Path("half.safetensors")).values()} == {"F16"}
    done("sample", "half.safetensors", *PROMPT)


def test_what_is_not_in_the_arrays_is_said(done, made):
    arrays = arrays_of(made / "2.safetensors")
    averages = {f"model_ema.{i}": ("F32", [1], bytes(4)) for i in range(3)}
    write_raw(made / "plain.safetensors", arrays | averages)
    out = done("import", "plain.safetensors", "--out", "eps")
    warning = (
        "plain.safetensors: Stable Diffusion 2.x, and nothing in it says whether it predicts eps or v; eps is assumed: "
        "if the images are noise, use minidiff import with --prediction v_prediction\n"
    )
    assert out.startswith(f"{warning}Wrote eps: ") and "in the layout of Stable Diffusion 2.x; " in out
    assert out.endswith("prediction type epsilon; left out 3 moving averages (model_ema.)\n")
    assert done("sample", "plain.safetensors", *PROMPT).startswith(warning)
    assert "prediction type v_prediction" in done(
        "import", "plain.safetensors", "--out", "v", "--prediction", "v_prediction"
    )


def test_a_run_of_other_sizes(done, made):
    new_text_run(made / "run", latent=True)
    out = done("export", "run", "run.safetensors", "--single-file")
    assert out == "Wrote run.safetensors; only with --config run can minidiff import read it back\n"
    done("import", "run.safetensors", "--out", "again", "--config", "run")
    prompt = ("--prompt", "red bar", "--steps", 2, *QUICK)
    for model in ("run", "again"):
        done("sample", model, *prompt, "--npz", f"{model}.npz")
    assert bytes_of("run.npz") == bytes_of("again.npz")


def test_what_is_refused(refused, made):
    Path("model.ckpt").write_bytes(b"PK")
    Path("notes.txt").write_text("")
    for command in (["import", "model.ckpt", "--out", "out"], ["sample", "model.ckpt", "--prompt", "a cat"]):
        refused(
            *command, match="model.ckpt: is a pickle, which can run any code.*from_single_file, and save_pretrained"
        )
    refused("sample", "1.safetensors", match="1.safetensors: holds a text-conditional U-Net.*; give --prompt")
    refused("sample", "1.safetensors", *PROMPT, "--best", match="1.safetensors: holds no run")
    refused("sample", "notes.txt", *PROMPT, match="notes.txt: damaged or not safetensors")
    refused("import", "none.safetensors", "--out", "out", match="none.safetensors: no such file")
    refused("import", "folder1", "--out", "out", match="folder1: damaged or not safetensors .it is no regular file")
    refused("import", "1.safetensors", "--out", "folder2", match="folder2: is there already; choose a new folder")
    refused(
        "import", "1.safetensors", "--out", "out", "--config", "folder2", match="arrays missing: cond_stage_model.mo"
    )
    refused("import", "1.safetensors", "--out", "out", "--config", "none", match="none/unet/config.json: No such file")
    refused("export", "folder1", "out", "--single-file", "--best", match="--single-file writes what the folder holds")
    refused("export", "none", "out", "--single-file", match="none: no such folder")
    refused("export", "folder1", "1.safetensors/out.safetensors", "--single-file", match="cannot write 1.safetensors/o")
    for name in ("model.ckpt", "out"):
        refused("export", "folder1", name, "--single-file", match=f"{name}: is to be a safetensors file; give a name")
    new_text_run(made / "run")
    refused("export", "run", "out", "--single-file", match="run: its U-Net works on pixels")
    refused(
        "train",
        "emoji",
        "--out",
        "new",
        "--text",
        "--text-encoder",
        "1.safetensors",
        match="is a file; give the folder that",
    )
