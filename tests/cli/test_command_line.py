"""The command line: help, errors of usage, output files, closed pipes and file names."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import pytest
from small_commands import QUICK, SMALL, bytes_of, process
from small_runs import idx_set

from minidiff.cli import app, evaluate, options
from minidiff.cli.sampling import edit, explain, prompts
from minidiff.diffusion.continuous import EDM, Flow
from minidiff.diffusion.sampler import SAMPLERS, SPACINGS
from minidiff.diffusion.schedule import PREDICTION_TYPES
from minidiff.engine.backend import PACKAGES
from minidiff.terminal import printable
from minidiff.training import state
from minidiff.training.config import DECAY_START, OPTIMIZERS
from minidiff.training.recipes import RECIPES

COMMANDS = (
    "demo", "learn", "noise", "train", "train-vae", "train-classifier", "tune", "sample", "explain", "redraw", "fill",
    "invert", "between", "evaluate", "report", "import", "export", "info", "bench",
)  # fmt: skip


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help(done, command, monkeypatch):
    """At a width of 130 the help of every option is one line, under the option itself if its choices are long."""
    monkeypatch.setenv("COLUMNS", "130")
    out = done(*command, "--help")
    assert out.startswith(f"Usage: minidiff {' '.join(command)}")
    options = out.split("Options:\n")[1].split("\n\nCommands:")[0]
    options = re.sub(r"  --show-completion.*?\n(?=  --)", "", options, flags=re.DOTALL)  # typer's own words
    options = re.sub(r"(  --\S+ <\S+\|\S+>)\n +", r"\1  ", options)
    assert all(line.startswith("  --") for line in options.splitlines()), options
    assert "Trace" not in out and "\x1b" not in out


def test_nothing_to_do_is_help(done):
    assert done() == done("--help")
    assert all(f"\n  {name} " in done() for name in COMMANDS)


def test_info(done):
    out = done("info")
    facts = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith(("threading", "vector")))
    assert facts["threads"].strip() == "1"
    assert re.search(r"^threading layer +(omp|tbb|workqueue) *$", out, re.M)
    assert re.search(r"^vector width +\d+ float32 \(\d+ bits\) *$", out, re.M)


def test_typed_choices_are_those_of_the_package():
    choices = {
        options.BackendName: tuple(set(PACKAGES) - {"numba-bf16"}),  # which --precision chooses
        options.SamplerName: SAMPLERS, options.SpacingName: SPACINGS,
        options.RecipeName: tuple(RECIPES), options.DecayName: tuple(DECAY_START),
        options.OptimizerName: OPTIMIZERS,
        options.PredictionType: (*PREDICTION_TYPES, EDM().prediction_type, Flow().prediction_type),
    }  # fmt: skip
    for choice, names in choices.items():
        assert sorted(get_args(choice)) == sorted(names)


def test_version(done):
    assert done("--version") == f"minidiff {version('minidiff')}\n"


def test_shell_completion():
    asked = dict(_MINIDIFF_COMPLETE="complete_bash", COMP_WORDS="minidiff tra", COMP_CWORD="1")
    child = process(code=f"import os; os.environ.update({asked})")
    out, err = child.communicate(timeout=100)
    assert (out.split(), err) == (["train", "train-vae", "train-classifier"], "")


def test_as_a_module():
    child = process("info")
    out, err = child.communicate(timeout=100)
    assert (child.returncode, err) == (0, "") and "threading layer" in out


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["fly"], r"No such command 'fly'\. See minidiff"), (["nois"], r"Did you mean 'noise'\? See minidiff"),
        (["--versoin"], r"--versoin.*See minidiff"), (["train"], r"Missing option '--out'\. See minidiff train"),
        (["train", "cats_dogs"], r"Missing option '--out'\. See minidiff train"),
        (["train", "cats_dogs", "--out"], r"requires an argument\. See minidiff"),
        (["train", "cats_dogs", "--out", "run", "--momentum", "1"], r"--momentum\. See minidiff train"),
        (["sample", "run", "surplus"], r"surplus\)\. See minidiff sample"),
        (["sample", "run", "--n", "many"], r"'--n'.*valid integer.*\. See minidiff sample"),
    ],
)  # fmt: skip
def test_wrong_words(refused, arguments, match):
    refused(*arguments, match=f"{match} --help\\.$")


@pytest.mark.parametrize("command", ["demo", "noise"])
def test_numbers_for_the_others(refused, command):
    arguments = ["noise", "picture.png"] if command == "noise" else ["demo", "--threads", "0"]
    refused(*arguments, "--seed", "-1", match="'--seed'")
    if command == "demo":
        refused(*arguments, match="0 threads")


@pytest.mark.parametrize(
    "name",
    [
        "[bold] [x]",
        ":smile: a",
        "é ☃ 猫",
        "-x",
        "100% {0}",
        "$a_b^$",
        "l\nine",
        "a  b",
        "\x1b[2J",
        "\u202ex",
        "x" * 150,
    ],
)
def test_odd_names(done, refused, tmp_path, name):
    idx_set(tmp_path / "data").rename(tmp_path / name)
    given = f"./{name}"
    out = done("train", given, "--out", f"./run {name}", "--steps", 1, *SMALL)
    assert f"{printable(name)}: 10 images" in out
    out = done("sample", f"./run {name}", "--out", f"./{name}.png", "--n", 1, "--steps", 2, *QUICK)
    assert f"Wrote {printable(name)}.png\n" in out
    refused("sample", f"./no {name}", match=re.escape(printable(f"no {name}: ")))
    assert (tmp_path / f"{name}.png").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names that are any bytes")
def test_a_name_that_is_no_text(done, refused, tmp_path):
    name = os.fsdecode(b"\xff\xfe")
    refused("sample", name, match="no such folder; give a run")
    idx_set(tmp_path / "data").rename(tmp_path / name)
    child = process("train", name, "--out", f"run {name}", "--steps", 1, *SMALL)
    _, err = child.communicate(timeout=100)
    assert (child.returncode, err) == (0, "")
    done("sample", f"run {name}", "--out", f"{name}.png", "--n", 1, "--steps", 2, *QUICK)


@pytest.mark.parametrize(
    "arguments, code", [(["sample", "run", "--n", "1", *QUICK], 0), (["--help"], 0), (["sample", "nowhere"], 2)]
)
def test_nobody_reads_what_a_command_prints(trained, arguments, code):
    """Neither stdout nor stderr."""
    child = process(*arguments)
    child.stdout.close()
    child.stderr.close()
    assert child.wait(100) == code
    assert Path("sheet.png").is_file() == ("run" in arguments)


def test_an_input_is_not_overwritten(done, refused, trained, drawing_to_edit):
    """By none of its names; an earlier output is."""
    Path("link.png").symlink_to("picture.png")
    edit = ("run", "picture.png")
    for command in (("noise", "picture.png"), ("redraw", *edit), ("fill", *edit, "mask.png")):
        for out in ("picture.png", "link.png", Path("picture.png").absolute(), *command[3:]):
            refused(*command, "--out", out, match=f"cannot write {out}: it is the input .*; choose another name")
    for _ in range(2):
        done("noise", "picture.png", "--out", "strip.png")
        done("redraw", "run", "picture.png", "--out", "strip.png", "--n", 1, "--steps", 2, *QUICK)


def test_links_are_followed(done, trained):
    Path("folder").mkdir()
    places = ("sheet.png", "walk.gif", "drawn.npz")
    for name in places:
        Path(name).symlink_to(f"folder/{name}")
    for seed in (0, 1):
        before = {name: Path("folder", name).exists() and bytes_of(f"folder/{name}") for name in places}
        done("sample", "run", "--gif", "walk.gif", "--npz", "drawn.npz", "--n", 2, "--steps", 2, "--seed", seed, *QUICK)
        assert all(Path(name).is_symlink() and bytes_of(f"folder/{name}") != before[name] for name in places)


@pytest.mark.parametrize(
    "stem, match",
    [
        ("folder", "it is a folder; give the name of a file"), ("fifo", "it is no regular file"),
        ("x" * 300, "File name too long"), ("picture.png/a", "no such folder"), ("missing/a", "no such folder"),
    ],
)  # fmt: skip
def test_files_are_checked_before_the_work(refused, trained, drawing_to_edit, monkeypatch, stem, match):
    """Before anything is read."""
    for module in (prompts, edit):
        monkeypatch.setattr(module, "open_pipeline", None)
    for module, function in ((app.imaging, "load_image"), (app.rivals, "open_rival")):
        monkeypatch.setattr(module, function, None)
    for suffix in ("png", "gif", "npz", "json"):
        Path(f"folder.{suffix}").mkdir()
        os.mkfifo(f"fifo.{suffix}")
    for suffix, command in (
        ("png", ("noise", "picture.png", "--out")), ("png", ("sample", "run", "--out")),
        ("gif", ("sample", "run", "--gif")), ("npz", ("sample", "run", "--npz")), ("png", ("between", "run", "--out")),
        ("png", ("redraw", "run", "picture.png", "--out")), ("npz", ("invert", "run", "picture.png", "--npz")),
        ("png", ("fill", "run", "picture.png", "mask.png", "--out")), ("json", ("bench", "--json")),
    ):  # fmt: skip
        refused(*command, f"{stem}.{suffix}", match=f"cannot write {stem}.{suffix}: {match}")


@pytest.mark.parametrize("name", ["x" * 300, "file/new", "file", "run", "."])
def test_new_folders_are_checked_before_the_work(refused, trained, monkeypatch, name):
    for module, function in ((state, "open_run"), (evaluate, "open_pipeline"), (explain, "open_pipeline")):
        monkeypatch.setattr(module, function, None)
    Path("file").write_text("")
    for command in (
        ("export", "run"), ("evaluate", "run", "--against", "data", "--out"),
        ("explain", "run", "--prompt", "a", "--out"),
    ):  # fmt: skip
        refused(*command, name, match=f"{name}: .*; choose (a new folder|another place)$")


@pytest.mark.parametrize(
    "command",
    [
        ("demo",), ("noise", "picture.png"), ("train", "data"), ("train-vae", "data"), ("sample", "run"),
        ("redraw", "run", "picture.png"), ("fill", "run", "picture.png", "mask.png"), ("between", "run"),
        ("invert", "run", "picture.png"), ("evaluate", "run", "--against", "data"), ("explain", "run", "--prompt", "a"),
    ],
)  # fmt: skip
def test_an_empty_place_is_not_the_current_folder(refused, command):
    refused(
        *command, "--out", "", match=f"Invalid value for '--out': it is empty; give a path. See minidiff {command[0]}"
    )


def test_other_empty_places(refused, trained):
    for option in ("gif", "npz"):
        refused("sample", "run", f"--{option}", "", match=f"'--{option}': it is empty; give a path")
    refused("export", "run", "", match="is there already; choose a new folder")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_too_full_for_what_is_printed(tmp_path):
    for stream, at in (("stdout", ["info"]), ("stderr", ["sample", "nowhere"])):
        command = [sys.executable, "-m", "minidiff", *at]
        with open("/dev/full", "w") as full:
            pipes: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, stream: full}
            done = subprocess.run(command, timeout=100, **pipes)
        assert done.returncode == 2
        if stream == "stdout":
            assert "standard output cannot be written: No space left on device; make room" in done.stderr
            assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps a folder that is in use")
def test_a_current_folder_that_is_gone(trained, tmp_path):
    gone = "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')"
    _, err = process("export", "run", "new", code=gone).communicate(timeout=100)
    assert err == "minidiff: new: the current folder was removed; change to one that is there\n"
    _, err = process("export", tmp_path / "run", tmp_path / "new", code=gone).communicate(timeout=100)
    assert err == "" and (tmp_path / "new" / "unet").is_dir()
