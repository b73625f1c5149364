"""The command line: every command does what it says, and wrong input gets one line and leaves nothing behind."""

import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from one_thread import one_thread  # noqa: F401  for all tests of this module
from PIL import Image
from safetensors.numpy import load_file, save_file
from small_runs import contents, idx_set, network, rows, tree

import minidiff as md
from minidiff import cli, cli_evaluate, cli_explain, cli_train
from minidiff.diffusion.sampler import SAMPLERS
from minidiff.runs import begin, checkpoint, demo, drawing, evaluate, fit, judge, machine, state, subject, unet_run
from minidiff.runs.state import only_one, state_file
from minidiff.runs.terminal import printable

QUICK = ("--backend", "numpy", "--threads", 1)
SMALL = (*QUICK, "--batch-size", 3)


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
    monkeypatch.setattr(unet_run, "PREVIEW", 2)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def _trained(tmp_path_factory):
    """A folder with data, an IDX set, and run, three steps of training on it."""
    folder = tmp_path_factory.mktemp("trained")
    idx_set(folder / "data")
    arguments = ["train", "data", "--out", "run", "--steps", "3", *map(str, SMALL)]
    with pytest.MonkeyPatch.context() as patched, pytest.raises(SystemExit) as caught:
        patched.chdir(folder)
        patched.setattr(sys, "argv", ["minidiff", *arguments])
        patched.setattr(unet_run, "PREVIEW", 2)
        cli.main()
    assert caught.value.code == 0
    return folder


@pytest.fixture
def trained(_trained, tmp_path):
    """The same in this test's own folder."""
    return shutil.copytree(_trained, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def data(tmp_path):
    return idx_set(tmp_path / "data")


def process(*arguments, code=None, **options):
    """The command line in a process of its own; `code` runs before it."""
    start = ["-c", f"{code}\nfrom minidiff.cli import main; main()"] if code else ["-m", "minidiff"]
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-W", "error", *start, *map(str, arguments)]
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job; children would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


# Help and info


COMMANDS = (
    "demo", "noise", "train", "train-vae", "sample", "explain", "redraw", "fill", "between", "evaluate", "export",
    "info", "bench",
)  # fmt: skip


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help(done, command, monkeypatch):
    """At the usual width of 80 every option has one line."""
    monkeypatch.setenv("COLUMNS", "80")
    out = done(*command, "--help")
    assert out.startswith(f"Usage: minidiff {' '.join(command)}")
    options = out.split("Options:\n")[1].split("\n\nCommands:")[0]
    options = re.sub(r"  --show-completion.*?\n(?=  --)", "", options, flags=re.DOTALL)  # typer's own words
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


def test_version(done):
    assert done("--version") == f"minidiff {version('minidiff')}\n"


def test_shell_completion():
    asked = dict(_MINIDIFF_COMPLETE="complete_bash", COMP_WORDS="minidiff tra", COMP_CWORD="1")
    child = process(code=f"import os; os.environ.update({asked})")
    out, err = child.communicate(timeout=100)
    assert (out.split(), err) == (["train", "train-vae"], "")


def test_as_a_module():
    child = process("info")
    out, err = child.communicate(timeout=100)
    assert (child.returncode, err) == (0, "") and "threading layer" in out


# Wrong words and numbers


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


NUMBERS = {
    "steps": ("0", "-5", "x", "1.5", "1e3", "99999999999"), "batch-size": ("0", "-1", "100000", "nan"),
    "lr": ("0", "-0.1", "1", "nan", "inf", "big"), "threads": ("0", "-1", "4097", "1000000"),
    "seed": ("-1", "1.5", "99999999999999999999"), "checkpoint-every": ("0", "-1", "x"),
    "size": ("0", "-32", "5000", "8", "big"), "backend": ("cuda", "", "numba "),
}  # fmt: skip


@pytest.mark.parametrize("option, value", [(option, value) for option, values in NUMBERS.items() for value in values])
def test_numbers_for_train(refused, data, option, value):
    name = "|".join({option, option.replace("-", "_")})
    refused("train", data, "--out", "run", f"--{option}", value, match=name)


def test_objectives_that_there_are_not(refused, data):
    refused("train", data, "--out", "run", "--objective", "eps", match="--objective eps: choose from epsilon, sample")
    refused("train", data, "--out", "run", "--min-snr", 0, match="min_snr = 0.0: give a number above 0, such as 5")


@pytest.mark.parametrize(
    "option, value, match",
    [
        ("n", "0", "'--n'"), ("n", "-3", "'--n'"), ("n", "100001", "'--n'"), ("steps", "0", "steps"),
        ("steps", "-1", "steps"), ("steps", "1001", "steps must be .* 1 to the schedule's 1000"), ("eta", "2", "eta"),
        ("eta", "-0.1", "eta"), ("eta", "nan", "eta"), ("seed", "-1", "'--seed'"), ("threads", "0", "0 threads"),
        ("threads", "9999", "9999 threads"), ("backend", "tpu", "unknown backend 'tpu'"),
        ("sampler", "eulr", "sampler 'eulr' is unknown: use one of ddpm, ddim"),
    ],
)  # fmt: skip
def test_numbers_for_sample(refused, trained, option, value, match):
    refused("sample", "run", "--out", "sheet.png", f"--{option}", value, match=match)


def test_eta_is_for_ddim(refused, trained):
    refused("sample", "run", "--sampler", "ddpm", "--eta", "0.5", match="eta = 0.5 is for the ddim sampler: ddpm")


@pytest.mark.parametrize("command", ["demo", "noise"])
def test_numbers_for_the_others(refused, command):
    arguments = ["noise", "picture.png"] if command == "noise" else ["demo", "--threads", "0"]
    refused(*arguments, "--seed", "-1", match="'--seed'")
    if command == "demo":
        refused(*arguments, match="0 threads")


# Wrong data


def test_no_data(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing_fits").mkdir()
    (tmp_path / "nothing_fits" / "a.txt").write_text("x")
    (tmp_path / "file.tar").write_text("x")
    for name, match in {
        "missing": "missing: no such folder or file", "empty": "empty: holds no picture",
        "nothing_fits": "holds no picture", "file.tar": "file.tar: is a file", "": "no built-in dataset",
    }.items():  # fmt: skip
        refused("train", name, "--out", "run", match=match)


def test_damaged_data(refused, data, tmp_path):
    images = data / "train-images-idx3-ubyte"
    good = images.read_bytes()
    for content in (b"", good[:10], good[:-1], good + b"x"):
        images.write_bytes(content)
        refused("train", data, "--out", "run", match="train-images-idx3-ubyte")
    images.write_bytes(good)
    (data / "train-labels-idx1-ubyte").unlink()
    refused("train", data, "--out", "run", match="train-labels-idx1-ubyte")


def test_damaged_pictures(refused, tmp_path):
    (tmp_path / "data").mkdir()
    Image.effect_noise((8, 8), 50).save(tmp_path / "data" / "a.png")
    good = (tmp_path / "data" / "a.png").read_bytes()
    for content in (b"", b"not a picture", good[:-30]):
        (tmp_path / "data" / "b.png").write_bytes(content)
        refused("train", "data", "--out", "run", match="b.png: cannot be read")
    Image.new("L", (8, 9)).save(tmp_path / "data" / "b.png")
    refused("train", "data", "--out", "run", match="b.png has 8x9 pixels.*--size")


# Training


def test_train(done, data, tmp_path):
    out = done("train", "data", "--out", "deep/er/run", "--steps", 4, "--checkpoint-every", 2, "--seed", 3, *SMALL)
    folder = tmp_path / "deep" / "er" / "run"
    assert "data: 10 pictures, 4x4 grey, 10 classes" in out
    assert "step 2: loss " in out and "step 4: loss " in out
    assert out.splitlines()[-1].endswith("minidiff sample deep/er/run")
    assert [row.split(",")[0] for row in rows(folder)] == ["1", "2", "3", "4"]
    assert set(tree(folder)) == {
        ".lock", "checkpoints.csv", "loss.png", "metrics.csv", "model_index.json", "samples", "samples/step-000002.png",
        "samples/step-000004.png", "scheduler", "scheduler/scheduler_config.json", "training",
        "training/best.safetensors", "training/state-000002.safetensors", "training/state-000004.safetensors",
        "training/state.safetensors", "unet", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("backend", "compiled", "said"), [("numba", False, 1), ("numba", True, 0), ("numpy", False, 0)]
)
def test_the_first_start_says_that_it_compiles(done, trained, monkeypatch, backend, compiled, said):
    monkeypatch.setattr(machine, "compiled", lambda: compiled)
    quick = ("--threads", 1, "--backend", backend)
    outs = [done("train", "data", "--out", "new", "--steps", 1, *quick)]
    outs += [done("sample", "run", "--n", 1, "--steps", 1, *quick)]
    assert [out.count("Compiling the kernels") for out in outs] == [said, said]


def test_the_same_choices_give_the_same_run(done, data, tmp_path):
    losses = {}
    for name, seed in {"one": 0, "two": 0, "other": 1}.items():
        done("train", "data", "--out", name, "--steps", 2, "--seed", seed, *SMALL)
        losses[name] = rows(tmp_path / name)
    assert losses["one"] == losses["two"] != losses["other"]


def test_a_folder_of_pictures(done, tmp_path):
    """Two classes of colour pictures, of odd sizes and not square, cut to 8 pixels."""
    rng = np.random.default_rng(0)
    for kind in ("cats", "dogs"):
        (tmp_path / "pets" / kind).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (9 + i, 13, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / kind / f"{i}.png")
    (tmp_path / "pets" / "a.psd").touch()
    (tmp_path / "pets" / "cats" / "no\x1bte").touch()
    out = done("train", "pets", "--size", 8, "--out", "run", "--steps", 1, *SMALL)
    assert "pets: 2 other files passed over: a.psd, cats/no\\x1bte\n" in out
    assert "pets: 6 pictures, 8x8 RGB, 2 classes" in out
    assert md.load_unet("run", "numpy").picture_shape == (8, 8, 3)


def test_choices_of_a_training(done, refused, data, tmp_path):
    """Each does something, is remembered, and can be made once."""
    done("train", "data", "--out", "plain", "--steps", 4, *QUICK, "--batch-size", 4, "--warmup", 2)
    choices = {
        "accumulate": (2, 2, 4), "warmup": (3, 3, 2), "decay": ("none", "none", "cosine"), "pad-crop": (1, 1, 2),
        "ema-half-life": (0.3, 0.5 ** (1 / 0.3), 3),
    }  # fmt: skip
    for option, (value, kept, other) in choices.items():
        more = ["--warmup", 2] if option != "warmup" else []
        done("train", "data", "--out", option, "--steps", 4, *QUICK, "--batch-size", 4, f"--{option}", value, *more)
        name = {"ema-half-life": "ema"}.get(option, option.replace("-", "_"))
        assert getattr(state.open_run(Path(option)).config, name) == kept
        same = bytes_of(f"{option}/unet/{checkpoint.WEIGHTS}") == bytes_of(f"plain/unet/{checkpoint.WEIGHTS}")
        assert not same
        match = f"was started with --{option} {value}, not {other}"
        refused("train", "data", "--out", option, "--resume", f"--{option}", other, match=match)
        done("train", "data", "--out", option, "--resume", f"--{option}", value)
    for option, value, match in (
        ("accumulate", 3, "accumulate = 3: must divide batch_size = 32"), ("decay", "linear", "choose cosine or none"),
        ("pad-crop", 4, "--pad-crop 4: give less than the 4 pixels"), ("pad-crop", -1, "pad_crop = -1"),
        ("ema-half-life", 0, "--ema-half-life 0: give 0.1 to 1e9 steps"), ("ema-half-life", "nan", "half-life nan"),
        ("warmup", -1, "warmup = -1"), ("keep", 0, "'--keep'"),
    ):  # fmt: skip
        refused("train", "data", "--out", "no", f"--{option}", value, *QUICK, match=match)


@pytest.mark.parametrize("command", ["train", "train-vae"])
def test_images_need_not_be_mirrored(done, refused, tmp_path, command):
    noises(tmp_path / "pets", size=8)
    for name, more in (("plain", []), ("same", ["--no-flip"])):
        done(command, "pets", "--out", name, "--steps", 2, *SMALL, *more)
        assert state.open_run(Path(name)).config.flip == (name == "plain")
    assert rows(tmp_path / "plain") != rows(tmp_path / "same")
    refused(
        command, "pets", "--out", "plain", "--resume", "--no-flip", match="plain: was started without --no-flip; leave"
    )
    for more in ([], ["--no-flip"]):  # remembered, and agreed with
        done(command, "pets", "--out", "same", "--resume", *more)
    assert not state.open_run(Path("same")).config.flip
    idx_set(tmp_path / "letters", height=8, width=8)
    done(command, "letters", "--out", "letters run", "--steps", 1, *SMALL)  # they are never mirrored
    done(command, "letters", "--out", "letters run", "--resume", "--no-flip")


def test_a_network_of_another_width_and_depth(done, refused, data):
    """Without a recipe; a run that is resumed has its own, and says so."""
    done("train", "data", "--out", "run", "--steps", 1, "--width", 8, "--depth", 2, *SMALL)
    assert md.load_unet("run", "numpy").config.block_out_channels == (8, 16)
    resume = ("train", "data", "--out", "run", "--resume", "--steps", 2, *QUICK)
    refused(*resume, "--width", 16, match="run: was started with --width 8, not 16; leave it out")
    refused(*resume, "--depth", 1, match="run: was started with --depth 2, not 1; leave it out")
    assert "Done: step 2" in done(*resume, "--width", 8, "--depth", 2)
    new = ("train", "data", "--out", "new")
    refused(*new, "--width", 12, match="^minidiff: width 12: give a multiple of 8")
    refused(*new, "--depth", 4, match="^minidiff: depth 4: does not go with 4x4 pixels; give 1 to 3 levels")
    refused(
        *new, "--depth", 1, "--recipe", "small-cpu", match="--depth is for networks without a recipe: leave it or --r"
    )


def test_bad_pictures_are_named_and_left_out(done, refused, tmp_path):
    noises(tmp_path / "pets")
    done("train", "pets", "--out", "run", "--steps", 2, *SMALL)
    (tmp_path / "pets" / "2.png").write_text("no picture")
    refused("train", "pets", "--out", "new", *SMALL, match="pets/2.png: cannot be read as a picture")
    refused("train", "pets", "--out", "run", "--resume", "--steps", 3, match="pets/2.png: cannot be read as a picture")
    out = done("train", "pets", "--out", "new", "--steps", 2, "--skip-bad", *SMALL)
    assert "left out: pets/2.png: cannot be read as a picture" in out and "pets: 3 pictures" in out
    assert "left out: pets/2.png" in done("train", "pets", "--out", "new", "--resume", "--steps", 3)  # remembered
    out = done("train", "pets", "--out", "run", "--resume", "--steps", 3, "--skip-bad")
    assert out.count("left out") == 1 and "Done: step 3" in out
    (tmp_path / "pets" / "3.png").write_text("no picture either")
    assert done("train", "pets", "--out", "run", "--resume", "--steps", 4).count("left out") == 2


def test_checkpoints_are_measured_on_pictures_held_out(done, refused, data, tmp_path):
    assert "measured on 10 of its own pictures" in done("train", "data", "--out", "one", "--steps", 1, *SMALL)
    idx_set(tmp_path / "test", n=7)
    for kind in ("images-idx3", "labels-idx1"):
        (tmp_path / "test" / f"train-{kind}-ubyte").rename(data / f"t10k-{kind}-ubyte")
    assert "measured on 7 of the test split" in done("train", "data", "--out", "two", "--steps", 1, *SMALL)
    assert rows(tmp_path / "one") == rows(tmp_path / "two")
    assert bytes_of("one/checkpoints.csv") != bytes_of("two/checkpoints.csv")
    shutil.rmtree(tmp_path / "test")
    idx_set(tmp_path / "test", height=8).joinpath("train-images-idx3-ubyte").rename(data / "t10k-images-idx3-ubyte")
    (tmp_path / "test" / "train-labels-idx1-ubyte").rename(data / "t10k-labels-idx1-ubyte")
    code = "data: its test pictures are (8, 4, 1), the others (4, 4, 1)"
    with pytest.raises(md.MinidiffError, match=re.escape(code)):
        begin.held_out(state.open_run(Path("one")), md.open_dataset("data"))


def test_a_damaged_test_split_is_found_before_there_is_a_run(refused, data, tmp_path):
    idx_set(tmp_path / "test", n=7).joinpath("train-images-idx3-ubyte").rename(data / "t10k-images-idx3-ubyte")
    for command in (["train", "data", "--out", "run", *SMALL], ["train-vae", "data", "--out", "run", *SMALL]):
        refused(*command, match="neither t10k-labels-idx1-ubyte nor")


def test_resume_goes_on(done, data, tmp_path):
    done("train", "data", "--out", "whole", "--steps", 6, "--checkpoint-every", 2, *SMALL)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cli_train, "stoppable", stop_after(3))
        patched.setattr(sys, "argv", "minidiff train data --out run --steps 6".split() + [str(a) for a in SMALL])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    assert caught.value.code == 130
    assert len(rows(tmp_path / "run")) == 3
    out = done("train", "data", "--out", "run", "--resume", "--checkpoint-every", 2)
    assert "Done: step 6" in out
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert (
        contents(tmp_path / "run")["training/state.safetensors"]
        == contents(tmp_path / "whole")["training/state.safetensors"]
    )


def stop_after(steps):
    """In place of `stoppable`: as if Ctrl-C came in that step."""

    @contextmanager
    def stoppable(notice):
        asked = iter([False] * (steps - 1) + [True])
        yield lambda: next(asked)

    return stoppable


def test_resuming_a_finished_run_changes_nothing(done, trained):
    before = tree(trained)
    out = done("train", "data", "--out", "run", "--resume")
    assert "all 3 steps are done already; to go on, give a larger --steps" in out
    assert tree(trained) == before


def test_resuming_a_finished_run_mends_its_export(done, trained):
    before = tree(trained)
    weights = trained / "run" / "unet" / checkpoint.WEIGHTS
    save_file({name: 0 * a for name, a in load_file(weights).items()}, weights)
    done("train", "data", "--out", "run", "--resume")
    assert tree(trained) == before


def test_a_larger_total_goes_on(done, trained):
    before = rows(trained / "run")
    done("train", "data", "--out", "run", "--resume", "--steps", 5)
    assert rows(trained / "run")[:3] == before and len(rows(trained / "run")) == 5


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["--steps", 2], "is at step 3 already, beyond --steps 2"), (["--batch-size", 4], "with --batch-size 3, not 4"),
        (["--lr", 0.5], "lr 0.001, not 0.5"), (["--seed", 1], "seed 0, not 1"), (["--size", 4], "without --size"),
        (["--backend", "numba"], "backend numpy, not numba"), (["--threads", 0], "0 threads"),
        (["--threads", 9999], "9999 threads"), (["--steps", 0], "beyond --steps 0|steps = 0"),
    ],
)  # fmt: skip
def test_what_contradicts_the_run_is_refused(refused, trained, arguments, match):
    refused("train", "data", "--out", "run", "--resume", *arguments, match=match)


def test_what_agrees_with_the_run_is_not(done, trained):
    done("train", "data", "--out", "run", "--resume", "--steps", 3, "--seed", 0, "--lr", 0.001, *SMALL)
    for same in ("./data/", trained / "data"):
        done("train", same, "--out", "run", "--resume")


def test_choices_are_checked_before_the_data_is_fetched(refused, monkeypatch):
    monkeypatch.setattr(begin, "open_dataset", None)
    for option, value in {"threads": 9999, "backend": "tpu", "steps": 0, "size": 0}.items():
        refused("train", "cifar10", "--out", "run", f"--{option}", value, match=option)


def test_other_data(refused, trained):
    idx_set(trained / "other", n=11)
    refused("train", "other", "--out", "run", "--resume", match="other: is not the set that run was started with")
    match = r"run: was started with \S+/data, not cats_dogs"
    refused("train", "cats_dogs", "--out", "run", "--resume", match=match)
    shutil.rmtree("data")
    refused("train", "data", "--out", "run", "--resume", match="data: no such folder or file")
    idx_set(trained / "data", height=8)
    refused("train", "data", "--out", "run", "--resume", match=r"data: its pictures are not the run's, \(4, 4, 1\)")


def test_a_run_goes_on_wherever_its_data_and_it_lie(done, refused, trained, monkeypatch):
    """What counts is what the pictures are, not their path, which is remembered as it was given last."""
    (trained / "elsewhere").mkdir()
    monkeypatch.chdir(trained / "elsewhere")
    shutil.move("../data", "moved")
    assert "Done: step 4" in done("train", "moved", "--out", "../run", "--resume", "--steps", 4)
    assert state.open_run(Path("../run")).config.data == str(trained / "elsewhere" / "moved")
    pixels = bytearray(Path("moved/train-images-idx3-ubyte").read_bytes())
    pixels[-1] ^= 1
    Path("moved/train-images-idx3-ubyte").write_bytes(pixels)
    refused("train", "moved", "--out", "../run", "--resume", match="moved: is not the set that ../run was started with")


def test_a_run_of_before_sets_were_known_by_their_pictures(done, refused, trained):
    """It goes by the path, once more."""
    run = state.open_run(Path("run"))
    state.save(replace(run, config=replace(run.config, data="data", pictures="")))
    shutil.copytree("data", "moved")
    refused("train", "moved", "--out", "run", "--resume", match="run: was started with data, not moved")
    done("train", "./data", "--out", "run", "--resume", "--steps", 4)
    done("train", "moved", "--out", "run", "--resume", "--steps", 5)


def noises(folder, n=4, size=4):
    """A folder of small pictures, not the same from call to call."""
    folder.mkdir(parents=True)
    for i in range(n):
        Image.effect_noise((size, size), 50).save(folder / f"{i}.png")


def test_a_folder_may_be_renamed(done, refused, tmp_path):
    """Though the only class of a folder without classes is called as the folder is."""
    noises(tmp_path / "pets")
    done("train", "pets", "--out", "run", "--steps", 1, *SMALL)
    (tmp_path / "pets").rename("animals")
    done("train", "animals", "--out", "run", "--resume", "--steps", 2)
    noises(tmp_path / "others")
    for more in ([], ["--skip-bad"]):
        refused("train", "others", "--out", "run", "--resume", *more, match="others: is not the set that run was")


@pytest.mark.parametrize("out", ["pets", "pets/run", "pets/a/run", "pets/../pets/run"])
def test_a_run_among_its_pictures(done, refused, tmp_path, out):
    noises(tmp_path / "pets")
    match = f"{out}: lies among the pictures of pets; choose another --out"
    refused("train", "pets", "--out", out, *SMALL, match=match)


def test_a_run_beside_other_data(done, data):
    out = done("train", "data", "--out", "data/run", "--steps", 1, *SMALL)
    assert "1/1 loss" in out and "images/s" not in out  # a single step has no speed
    done("train", "data", "--out", "data/run", "--resume", "--steps", 2)


def test_disk_for_checkpoints(done, refused, trained, monkeypatch):
    go_on = ("train", "data", "--out", "run", "--resume", "--steps", 4)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: (10**9, 10**9, 0))
        match = "run: its checkpoints take .* GB of disk, 0.0 GB are free; make room"
        refused(*go_on, "--keep", 100, "--checkpoint-every", 1, match=match)
    monkeypatch.setattr(cli_train, "LARGE", 10**6)
    assert "Checkpoints take up to 0.0 GB of disk." in done(*go_on)


def test_a_run_is_there(refused, trained):
    refused("train", "data", "--out", "run", match="run: holds a run already; continue it with --resume")


def test_no_run_is_there(refused, data, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    for name in ("run", "mine", "data"):
        refused("train", "data", "--out", name, "--resume", match=f"{name}: holds no run")


def test_a_pipeline_is_not_overwritten(refused, trained):
    shutil.rmtree(trained / "run" / "training")
    refused("train", "data", "--out", "run", match="run: holds a .* that is not of a run; choose another folder")


def test_another_process_trains_here(refused, trained):
    with only_one(trained / "run"):
        for more in ((), ("--resume",)):
            refused("train", "data", "--out", "run", *more, match="run: another process is training here")


@pytest.mark.parametrize("out", ["data/train-images-idx3-ubyte", "data/train-images-idx3-ubyte/run", "x" * 300])
def test_a_place_that_cannot_be_written(refused, data, out):
    refused("train", "data", "--out", out, match="choose a folder that can be written")


def test_a_damaged_state_falls_back_and_says_so(done, refused, trained):
    done("train", "data", "--out", "run", "--resume", "--steps", 6)
    whole = rows(trained / "run")
    path = state_file(trained / "run")
    path.write_bytes(path.read_bytes()[:-100])
    out = done("train", "data", "--out", "run", "--resume", "--steps", 6)
    assert re.search(r"state.safetensors: damaged or not .*Going back to step 3, state-000003.safetensors", out)
    assert "Done: step 6" in out and rows(trained / "run") == whole
    for damaged in (trained / "run" / "training").iterdir():
        damaged.write_bytes(b"")
    refused("train", "data", "--out", "run", "--resume", match="state.safetensors: damaged or not safetensors")


@pytest.fixture
def bad_answers(monkeypatch):
    """bad_answers(first, last): in those steps the network's answers are no numbers."""

    def spoil(first, last):
        def spoilt(model, schedule, optimizer, *rest):
            def answer(*args, **kwargs):
                y = model(*args, **kwargs)
                if first <= optimizer.step_count + 1 <= last:
                    y.data[...] = np.nan
                return y

            return train_step(answer, schedule, optimizer, *rest)

        train_step = md.train_step
        monkeypatch.setattr("minidiff.runs.unet_run.train_step", spoilt)

    return spoil


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_a_gradient_that_is_no_number_is_told_and_the_run_goes_on(done, data, tmp_path, bad_answers):
    bad_answers(3, 4)
    out = done("train", "data", "--out", "run", "--steps", 6, *SMALL)
    assert [line for line in out.splitlines() if "skipped" in line] == [
        f"step {step}: skipped, for its gradient is not finite (loss nan)" for step in (3, 4)
    ]
    assert re.search(r"step 6: loss 0\.\d+, loss of the averaged weights on fixed images 0\.\d+; saved", out)
    assert [row.split(",")[1] == "nan" for row in rows(tmp_path / "run")] == [False, False, True, True, False, False]


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_too_many_of_them_stop_it(run, data, tmp_path, bad_answers):
    bad_answers(3, 50)
    code, _, err = run("train", "data", "--out", "run", "--steps", 50, "--checkpoint-every", 2, *SMALL)
    assert code == 2
    assert re.fullmatch("minidiff: step 12: .*--lr; the checkpoint of step 10 is kept in run\n", err)
    assert len(rows(tmp_path / "run")) == 12


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
    assert f"{printable(name)}: 10 pictures" in out
    out = done("sample", f"./run {name}", "--out", f"./{name}.png", "--n", 1, "--steps", 2, *QUICK)
    assert f"Wrote {printable(name)}.png\n" in out
    refused("sample", f"./no {name}", match=re.escape(printable(f"no {name}: ")))
    assert (tmp_path / f"{name}.png").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names that are any bytes")
def test_a_name_that_is_no_text(done, refused, tmp_path):
    name = os.fsdecode(b"\xff\xfe")
    refused("sample", name, match="no unet/config.json")
    idx_set(tmp_path / "data").rename(tmp_path / name)
    done("train", name, "--out", f"run {name}", "--steps", 1, *SMALL)
    done("sample", f"run {name}", "--out", f"{name}.png", "--n", 1, "--steps", 2, *QUICK)


# Ctrl-C


def send_after(steps, child, folder, number):
    """Send the signal once that many steps are in the log."""
    log, deadline = folder / "metrics.csv", time.monotonic() + 200
    while not log.exists() or log.read_bytes().count(b"\n") <= steps:  # the header is a line too
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()
        time.sleep(0.01)
    child.send_signal(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_saves_and_says_how_to_go_on(done, data, tmp_path, number):
    steps = ("--steps", 150)
    child = process("train", "data", "--out", "my run", *steps, *SMALL)
    send_after(5, child, tmp_path / "my run", number)
    out, err = child.communicate(timeout=200)
    assert (child.returncode, err) == (130, "")
    assert "Stopping after this step; Ctrl-C again breaks off." in out
    step = len(rows(tmp_path / "my run"))
    assert f"Saved at step {step}. To go on: minidiff train --out 'my run' --resume\n" in out
    done(*shlex.split(out.partition("To go on: minidiff ")[2]))  # the very command that was printed
    done("train", "data", "--out", "whole", *steps, *SMALL)
    assert rows(tmp_path / "my run") == rows(tmp_path / "whole")
    assert 5 <= step < 150


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_closed_terminal_saves(data, tmp_path):
    """SIGHUP comes, and nothing can be printed any more."""
    window, terminal = os.openpty()
    on_terminal = f"import os; os.dup2({terminal}, 1); os.dup2({terminal}, 2)"
    arguments = ("train", "data", "--out", "run", "--steps", 5000, *SMALL)
    with process(*arguments, code=on_terminal, pass_fds=[terminal]) as child:
        os.close(terminal)
        os.close(window)
        send_after(5, child, tmp_path / "run", signal.SIGHUP)
        assert child.wait(100) == 130
    assert state.saved_step(tmp_path / "run") == len(rows(tmp_path / "run")) >= 5


def test_ctrl_c_twice_breaks_off_at_once(done, data, tmp_path):
    """The second comes while the first one's checkpoint is being written."""
    hang = """
import os, time
from minidiff.runs import fit
save_state, fsync = fit.save_state, os.fsync
def slow(file):
    print("saving", flush=True)
    time.sleep(100)
def slow_save(run, keep):
    os.fsync = slow
    save_state(run, keep)
fit.save_state = slow_save
"""
    child = process("train", "data", "--out", "run", "--steps", 500, "--keep", 3, *SMALL, code=hang)
    folder = tmp_path / "run"
    send_after(3, child, folder, signal.SIGINT)
    while "saving" not in child.stdout.readline():
        assert child.poll() is None, child.communicate()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=50)  # of the hundred seconds that it sleeps
    lost = f"{len(rows(folder))} steps since the checkpoint of step 0"
    go_on = "minidiff train --out run --resume --keep 3"
    assert (child.returncode, err) == (130, f"minidiff: stopped; lost: {lost}. To resume: {go_on}\n")
    assert not list(folder.rglob("*.part"))
    done(*shlex.split(go_on)[1:], "--steps", 2)
    assert len(rows(folder)) == 2


def test_ctrl_c_before_the_first_step(data, tmp_path):
    """While the data is opened there is nothing to save yet."""
    wait = """
import time
import minidiff.cli
from minidiff.runs import begin
def slow(*_, **__):
    print("opening", flush=True)
    time.sleep(100)
begin.open_dataset = slow
"""
    child = process("train", "data", "--out", "run", code=wait)
    assert child.stdout.readline() == "opening\n"
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=50)
    assert (child.returncode, err) == (130, "minidiff: stopped\n")
    assert not (tmp_path / "run").exists()


# A closed pipe


def test_training_outlives_its_reader(data, tmp_path):
    """As under `| head -1`; what it would have printed is dropped."""
    child = process("train", "data", "--out", "run", "--steps", 30, *SMALL)
    assert child.stdout.readline() == "data: 10 pictures, 4x4 grey, 10 classes\n"
    with child:
        child.stdout.close()
        assert (child.stderr.read(), child.wait(100)) == ("", 0)
    assert len(rows(tmp_path / "run")) == 30 and state.open_run(tmp_path / "run").step == 30
    assert (tmp_path / "run" / "samples" / "step-000030.png").is_file()


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
    assert err == "minidiff: the current folder is no longer there: change to another one, and call minidiff again\n"
    _, err = process("export", tmp_path / "run", tmp_path / "new", code=gone).communicate(timeout=100)
    assert err == "" and (tmp_path / "new" / "unet").is_dir()


# Sampling


def bytes_of(name):
    return Path(name).read_bytes()


def test_sample(done, trained):
    """Nine pictures of 4x4, drawn four at a time, on a sheet three wide."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(drawing, "BATCH", 4)
        out = done("sample", "run", "--out", "sheet.png", "--n", 9, "--steps", 3, "--gif", "walk.gif", *QUICK)
    assert out.endswith("Wrote sheet.png and walk.gif\n")
    with Image.open("sheet.png") as sheet, Image.open("walk.gif") as walk:
        assert sheet.size[0] == sheet.size[1]
        assert walk.n_frames == 3
        pixels = np.asarray(sheet)
    assert len(np.unique(pixels)) > 9


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_and_its_pictures_in_a_file(run, trained, sampler):
    code, out, err = run("sample", "run", "--n", 3, "--steps", 4, "--sampler", sampler, "--npz", "drawn.npz", *QUICK)
    assert code == 0 and out.endswith("Wrote sheet.png and drawn.npz\n")
    assert re.search("^minidiff: heun begins at 20291 times .* --karras" if sampler == "heun" else "^$", err)
    with np.load("drawn.npz") as file:
        assert file.files == ["arr_0"]
        images = file["arr_0"]
    assert images.shape == (3, 4, 4, 1) and images.dtype == np.uint8 and len(np.unique(images)) > 1


def test_without_a_sampler_the_folders_own_is_taken(done, tmp_path):
    """And ddpm takes all of the schedule's steps, which no walk of another length equals."""
    pipeline("net")
    checkpoint.save_pipeline("net", md.linear_schedule(20), md.Sampler("ddpm", "leading", variance="fixed_large"))

    def drawn(*more):
        done("sample", "net", "--n", 2, "--npz", "drawn.npz", *QUICK, *more)
        with np.load("drawn.npz") as file:
            return file["arr_0"].tobytes()

    own = drawn()
    assert own == drawn("--steps", 20) == drawn("--sampler", "ddpm") == drawn("--spacing", "leading")
    assert (
        len({own, drawn("--steps", 10), drawn("--steps", 10, "--spacing", "trailing"), drawn("--noise", "torch")}) == 4
    )


def test_places_for_pictures_are_looked_at_first(refused, trained):
    Path("folder").mkdir()
    for npz in ("folder", ".", "/"):
        refused("sample", "run", "--npz", npz, *QUICK, match="is a folder; give the name of a file")
    refused("sample", "run", "--npz", "no/such.npz", *QUICK, match="no/such.npz: no such folder")
    refused("sample", "run", "--npz", "a.png", *QUICK, match="a.png: is to be a NumPy archive; give a name that ends")
    Path("a.npz").symlink_to("a.gif")
    Path("same").symlink_to(".")
    for places in ("a.gif", "--gif", "a.gif"), ("a.gif", "--gif", "same/a.gif"), ("a.gif", "--npz", "a.npz"):
        refused("sample", "run", "--out", *places, *QUICK, match=f"{places[2]}: is to hold two things at once")


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_the_steps_of_a_short_schedule(done, tmp_path, name, spacing):
    """Not given, they are as many as the schedule and the sampler allow."""
    pipeline("net")
    clip = 1.0 if name in ("ddpm", "ddim", "heun") else None
    checkpoint.save_pipeline("net", md.linear_schedule(12), md.Sampler(name, spacing, offset=1, clip=clip))
    done("sample", "net", "--n", 1, *QUICK)


def test_a_class_on_demand(done, refused, data):
    """Asked for by name, class by class, insisted on; and the run goes on as it was, its labels with it."""
    done("train", data, "--out", "run", "--steps", 3, "--by-class", *SMALL)
    assert json.loads(Path("run/classes.json").read_text()) == [str(k) for k in range(10)]
    assert not Path("run/model_index.json").exists()  # no pipeline of diffusers draws by class
    assert md.load_unet("run", "numpy").config.num_class_embeds == 11

    def drawn(*more):
        done("sample", "run", "--steps", 2, "--npz", "drawn.npz", *QUICK, *more)
        with np.load("drawn.npz") as file:
            return file["arr_0"]

    threes, sevens = drawn("--n", 4, "--class", 3), drawn("--n", 4, "--class", 7)
    assert len(threes) == 4 and np.any(threes != sevens)
    assert np.any(drawn("--n", 4, "--class", 3, "--guidance", 3) != threes)
    assert len(drawn("--n", 25, "--class", "all")) == 25  # two or three of each
    with Image.open("sheet.png") as sheet:
        assert sheet.size[1] > 3 * sheet.size[0]  # a row a class
    np.testing.assert_array_equal(drawn("--n", 25), drawn("--n", 25, "--class", "all"))
    refused("sample", "run", "--class", "cat", *QUICK, match="run: has no class 'cat'; choose from 0, 1, .*, 9, or all")
    for guidance in ("nan", "inf", -1):
        refused("sample", "run", "--guidance", guidance, *QUICK, match="--guidance .*: give a number from 0 to 100")
    for names, match in (
        ("[1]", "classes.json: must be a list of names"),
        (json.dumps(["a"] * 12), "names more classes"),
    ):
        Path("run/classes.json").write_text(names)
        refused("sample", "run", *QUICK, match=match)
    Path("run/classes.json").unlink()
    refused("sample", "run", "--class", 3, "--guidance", 2, *QUICK, match="run: has no classes.json of all its classes")
    done("train", data, "--out", "run", "--steps", 5, "--resume", *QUICK)
    assert len(rows(Path("run"))) == 5


@pytest.mark.parametrize("objective", ["epsilon", "sample", "v_prediction", "edm", "flow"])
def test_objectives(done, refused, data, objective):
    out = done("train", data, "--out", "run", "--steps", 3, "--objective", objective, "--min-snr", 5, *SMALL)
    assert ("weight min(SNR, 5), in place of EDM's own SNR + 4." in out) == (objective == "edm")
    assert md.load_schedule("run").prediction_type == objective
    weighted = rows(Path("run"))
    done("train", data, "--out", "plain", "--steps", 3, "--objective", objective, *SMALL)
    assert weighted != rows(Path("plain"))
    other = "sample" if objective == "epsilon" else "epsilon"
    match = f"was started with --objective {objective}, not {other}"
    refused("train", data, "--out", "run", "--resume", "--objective", other, match=match)
    refused("train", data, "--out", "run", "--resume", "--min-snr", 4, match="was started with --min-snr 5.0, not 4.0")
    done("train", data, "--out", "run", "--steps", 4, "--resume", "--objective", objective, *QUICK)


@pytest.mark.parametrize("objective", ["edm", "flow"])
def test_what_is_done_with_continuous_times(done, refused, data, drawing_to_edit, objective):
    done("train", data, "--out", "run", "--steps", 2, "--objective", objective, "--by-class", *SMALL)
    for sampler in ("heun", "ddim", "dpmpp_2m"):
        done("sample", "run", "--n", 2, "--steps", 3, "--sampler", sampler, "--guidance", 2, *QUICK)
    done("redraw", "run", "picture.png", "--n", 2, "--steps", 4, *QUICK)
    done("fill", "run", "picture.png", "mask.png", "--n", 2, "--steps", 4, *QUICK)
    done("export", "run", "exported")
    done("sample", "exported", "--n", 2, "--steps", 3, *QUICK)
    refused("sample", "run", "--steps", 1001, *QUICK, match="steps must be an integer from 1 to 1000")
    refused("sample", "run", "--karras", *QUICK, match=f"karras is for schedules over whole timesteps: {objective}")


def sheet_tiles(path, columns):
    """The tiles of a sheet of 4x4 pictures, each as its 96 x 96 pixels."""
    with Image.open(path) as image:
        pixels = np.asarray(image)
    rows_, tile = pixels.shape[0] // 100, slice(4, 100)
    return [pixels[100 * r :, 100 * c :][tile, tile] for r in range(rows_) for c in range(columns)]


@pytest.fixture
def drawing_to_edit(tmp_path):
    """A picture, and a mask that is white in its left half."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).save("picture.png")
    mask = np.zeros((4, 4), np.uint8)
    mask[:, :2] = 255
    Image.fromarray(mask).save("mask.png")


def test_redraw(done, trained, drawing_to_edit):
    assert "1/1" in done("redraw", "run", "picture.png", "--n", 3, "--steps", 10, "--strength", 0, *QUICK)
    same = sheet_tiles("sheet.png", 2)
    assert all(np.array_equal(tile, same[0]) for tile in same)
    done("redraw", "run", "picture.png", "--n", 3, "--steps", 10, "--strength", 0.9, *QUICK)
    changed = sheet_tiles("sheet.png", 2)
    np.testing.assert_array_equal(changed[0], same[0])  # the original comes first
    assert len({tile.tobytes() for tile in changed}) == 4


def test_fill(done, trained, drawing_to_edit):
    done("fill", "run", "picture.png", "mask.png", "--n", 3, "--steps", 10, *QUICK)
    original, *filled = sheet_tiles("sheet.png", 2)
    for tile in filled:
        np.testing.assert_array_equal(tile[:, 48:], original[:, 48:])
        assert np.any(tile[:, :48] != original[:, :48])


def test_between(done, trained):
    done("between", "run", "--n", 5, "--steps", 10, *QUICK)
    first, *_, last = tiles = sheet_tiles("sheet.png", 5)
    assert len(tiles) == 5 and np.any(first != last)
    done("between", "run", "--n", 2, "--steps", 10, "--out", "ends.png", *QUICK)
    for end, tile in zip(sheet_tiles("ends.png", 2), (first, last), strict=True):
        np.testing.assert_array_equal(end, tile)


@pytest.mark.parametrize("command", ["redraw", "fill"])
def test_what_cannot_be_edited(refused, trained, drawing_to_edit, command):
    more = ["mask.png"] if command == "fill" else []
    refused(command, "run", "missing.png", *more, *QUICK, match="missing.png")
    refused(command, "nothing", "picture.png", *more, *QUICK, match="nothing: no such folder")
    refused(command, "run", "picture.png", *more, "--class", "cat", *QUICK, match="was not trained by class")
    refused(command, "run", "picture.png", *more, "--out", "no/sheet.png", *QUICK, match="no such folder")
    if command == "redraw":
        refused(command, "run", "picture.png", "--strength", 2, *QUICK, match="strength must be from 0 to 1, not 2.0")
    else:
        refused(command, "run", "picture.png", "missing.png", *QUICK, match="missing.png")


def test_what_no_class_can_be_asked_of(refused, trained):
    refused("sample", "run", "--class", "cat", *QUICK, match="run: was not trained by class; leave --class out")
    refused("sample", "run", "--class", os.fsdecode(b"\xff"), *QUICK, match="--class '.udcff': is not valid UTF-8")
    refused("sample", "run", "--guidance", 2, *QUICK, match="--guidance 2 is for networks that were trained by class")
    refused("train", "data", "--out", "run", "--resume", "--by-class", match="run: was started without --by-class")


def test_what_sample_cannot_do(refused, trained):
    refused("sample", "run", "--noise", "jax", *QUICK, match="--noise jax: choose numpy or torch")
    refused("sample", "run", "--karras", *QUICK, match="karras is for euler, heun, dpmpp_2m: ddim walks over whole")
    refused("sample", "run", "--spacing", "even", *QUICK, match="spacing 'even' is unknown: use one of trailing")


# Evaluating


@pytest.fixture
def quick_judge(monkeypatch, tmp_path_factory):
    """A judge of two steps, kept outside the test's own folder."""
    kept = tmp_path_factory.mktemp("kept")
    for name, value in {"FEWEST": 2, "MOST": 2, "BATCH": 4, "WORTH": 16, "user_cache_dir": lambda: kept}.items():
        monkeypatch.setattr(judge, name, value)
    monkeypatch.setattr(subject, "LEAST", 8)
    monkeypatch.setattr(evaluate, "LEAST", 8)
    monkeypatch.setattr(evaluate, "BITS", 4)
    monkeypatch.setattr(evaluate, "ASKS", 2)


@pytest.fixture
def real(trained, quick_judge):
    """The set of `trained`, and pictures to test with."""
    return idx_set(trained / "data", n=40, prefix="t10k")


def test_evaluate(done, real, tmp_path):
    few = ("--n", 16, "--steps", 2, *QUICK)
    out = done("evaluate", "run", "--against", "data", "--out", "new/folder", *few)
    assert "Training a classifier of data, once" in out
    assert "16 of run, weights moving average, of step 3, ddim in 2 steps, guidance 1, seed 0\n" in out
    assert "16 of data, the other half\n" in out and "20 of data, half of the test split\n" in out
    assert re.search(r"classifier   10 of data, right on [0-9.]+ % of 40 others\n", out)
    report = json.loads(Path("new/folder/figures.json").read_text())
    assert report["samples"] == {
        "of": "run", "n": 16, "weights": "moving average, of step 3", "sampler": "ddim", "steps": 2, "guidance": 1.0,
        "seed": 0,
    }  # fmt: skip
    for side in ("samples", "baseline"):
        figures = report["figures"][side]
        assert set(figures) == {"frechet", "kid", "precision", "recall", "nearest", "colour"}
        assert f"{figures['frechet']:.4f}" in out and f"{figures['nearest']:.4f}" in out
    assert report["bits_per_dim"]["n"] == 4 and f"{report['bits_per_dim']['mean']:.3f} ± " in out
    with Image.open("new/folder/neighbours.png") as sheet:
        assert sheet.size[0] == 8 * 100 + 4
    assert len(list(Path("new/folder/samples").iterdir())) == 16
    assert len(list(Path("new/folder/reference").iterdir())) == 20
    assert not list(tmp_path.glob("new/.*"))
    assert "Training" not in done("evaluate", "run", "--against", "data", *few)


def test_evaluate_few_samples(done, real, monkeypatch):
    """What needs no classifier, and a word on the rest."""
    monkeypatch.setattr(judge, "WORTH", 17)
    monkeypatch.setattr(judge, "learn", None)
    out = done("evaluate", "run", "--against", "data", "--n", 16, "--steps", 2, "--out", "new", *QUICK)
    assert "16 samples are too few to train a classifier for; distances, precision, recall and agreement are" in out
    assert "classifier   none, for fewer than 17 samples\n" in out and "Training" not in out and "KID" not in out
    report = json.loads(Path("new/figures.json").read_text())
    assert report["classifier"] is None and report["bits_per_dim"]["n"] == 4
    assert all(list(side) == ["nearest", "colour"] for side in report["figures"].values())


def test_evaluate_with_a_classifier_of_other_data(done, refused, tmp_path, quick_judge):
    """Of a flat folder, whose images are of a single class."""
    noises(tmp_path / "flat", n=81)
    for kind in "ab":
        noises(tmp_path / "pets" / kind, n=45)
    done("train", "flat", "--out", "run", "--steps", 1, *SMALL)
    evaluation = ("evaluate", "run", "--against", "flat", "--n", 16, "--steps", 2, *QUICK)
    refused(*evaluation, match="flat: has a single class, and a classifier needs two; give --classifier")
    out = done(*evaluation, "--classifier", "pets")
    assert re.search(r"classifier   81 of pets, right on [0-9.]+ % of 9 others\n", out)
    assert "Fréchet distance" in out and "both against 73 of flat" in out
    refused(*evaluation, "--classifier", "nothing", match="nothing: no built-in set has this name")


def test_evaluate_what_is_drawn_already(done, refused, real):
    """The figures are those of the run that drew it, by either way to the file."""
    done("sample", "run", "--n", 16, "--steps", 2, "--npz", "a.npz", *QUICK)
    done("evaluate", "run", "--n", 16, "--steps", 2, "--against", "data", "--out", "drawn", *QUICK)
    for i, path in enumerate(("a.npz", "drawn/samples.npz")):
        out = done("evaluate", path, "--against", "data", "--out", f"read{i}", *QUICK)
        assert f"samples      16 of {path}\n" in out and "bits" not in out and "drawing" not in out
        drawn, read = (json.loads(Path(f, "figures.json").read_text()) for f in ("drawn", f"read{i}"))
        assert read["figures"] == drawn["figures"] and read["bits_per_dim"] is None
    refused("evaluate", "a.npz", "--against", "data", "--steps", 3, match="a.npz: these pictures are drawn already")
    refused("evaluate", "a.npz", "--against", "data", "--raw", match="a.npz: these pictures are drawn already")
    np.savez("few.npz", np.zeros((7, 4, 4, 1), np.uint8))
    refused("evaluate", "few.npz", "--against", "data", match="few.npz: holds 7 pictures; 8 are the least")
    Path("text.npz").write_text("x")
    refused("evaluate", "text.npz", "--against", "data", match="text.npz: cannot be read as pictures")


def test_evaluate_raw_weights(done, real):
    reports = {}
    for name, more in {"average": (), "raw": ("--raw",)}.items():
        done("evaluate", "run", "--n", 16, "--steps", 2, "--against", "data", "--out", name, *more, *QUICK)
        reports[name] = json.loads(Path(name, "figures.json").read_text())
    assert reports["raw"]["samples"]["weights"] == "last, of step 3"
    assert reports["raw"]["figures"]["samples"] != reports["average"]["figures"]["samples"]
    assert reports["raw"]["figures"]["baseline"] == reports["average"]["figures"]["baseline"]
    assert reports["raw"]["bits_per_dim"] != reports["average"]["bits_per_dim"]
    done("export", "run", "exported", "--raw")
    done("evaluate", "exported", "--n", 16, "--steps", 2, "--against", "data", "--out", "stored", *QUICK)
    stored = json.loads(Path("stored/figures.json").read_text())
    assert stored["samples"]["weights"] == "as stored" and stored["figures"] == reports["raw"]["figures"]


def test_evaluate_by_class(done, refused, data, quick_judge):
    idx_set(data, n=40, prefix="t10k")
    done("train", "data", "--out", "run", "--steps", 1, "--by-class", *SMALL)
    out = done("evaluate", "run", "--against", "data", "--n", 25, "--steps", 2, "--guidance", 2, "--out", "new", *QUICK)
    report = json.loads(Path("new/figures.json").read_text())
    agreement = report["figures"]["samples"]["agreement"]
    assert list(agreement) == list("0123456789") and "guidance 2" in out
    assert report["samples"]["n"] == 25 and set(agreement.values()) <= {0, 1 / 3, 1 / 2, 2 / 3, 1}
    assert out.count(", taken for one") == 10
    shutil.copytree("data", "fashion")
    refused("evaluate", "run", "--against", "fashion", match="run: its classes are not those of fashion; evaluate what")


def test_bad_pictures_are_left_out_of_an_evaluation(done, refused, tmp_path, quick_judge):
    for kind in "ab":
        noises(tmp_path / "pets" / kind, n=81)
    done("train", "pets", "--out", "run", "--steps", 1, *SMALL)
    (tmp_path / "pets" / "a" / "0.png").write_text("no picture")
    evaluation = ("evaluate", "run", "--against", "pets", "--n", 16, "--steps", 2)
    refused(*evaluation, match="pets/a/0.png: cannot be read as a picture")
    assert "left out: pets/a/0.png" in done(*evaluation, "--skip-bad", *QUICK)


def test_what_cannot_be_evaluated(refused, real):
    against = ("evaluate", "run", "--against")
    refused(*against[:2], match="Missing option '--against'")
    refused(*against, "missing", match="missing: no such folder or file")
    idx_set(real.parent / "other", height=5, n=90)
    refused(*against, "other", match="other: its pictures are 4x5, not of size 4")
    idx_set(real.parent / "few", n=20)
    refused(*against, "few", match="few: its 20 pictures are too few .*; 80 are the least")
    refused(*against, "data", "--out", "run", match="run: is there already; choose a new folder")
    refused(*against, "data", "--out", "data/t10k-images-idx3-ubyte/x", match="Not a directory.*choose another place")
    refused(*against, "data", "--n", 15, match="'--n'")
    refused(*against, "data", "--steps", 1001, match="steps must be .* 1000")
    refused(*against, "data", "--sampler", "eulr", match="^minidiff: sampler 'eulr' is unknown")
    refused(*against, "data", "--guidance", 2, match="--guidance 2 is for networks that were trained by class")
    refused("evaluate", "missing", "--against", "data", match="missing: no such folder; give")
    shutil.copytree("run/unet", "net/unet")
    shutil.copytree("run/scheduler", "net/scheduler")
    refused("evaluate", "net", "--against", "data", "--raw", match="net: holds no run")


def test_an_evaluation_that_cannot_be_written_leaves_nothing(run, real, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluate, "save", full)
    before = tree(tmp_path)
    code, out, err = run("evaluate", "run", "--against", "data", "--n", 16, "--steps", 2, "--out", "new", *QUICK)
    assert (code, tree(tmp_path)) == (2, before)
    assert "No space left on device" in err and "Fréchet" in out  # the figures are not lost


def test_export(done, refused, trained):
    """The averaged weights, as the run's own folder has them; or the raw ones, which the state has."""
    assert done("export", "run", "average").startswith("Wrote average, of step ")
    done("export", "run", "raw", "--raw")
    for name in (
        "unet/config.json",
        f"unet/{checkpoint.WEIGHTS}",
        "scheduler/scheduler_config.json",
        "model_index.json",
    ):
        assert bytes_of(f"average/{name}") == bytes_of(f"run/{name}")
    raw = md.load_unet("raw", "numpy").state_dict()
    for name, a in state.open_run(Path("run")).unet.state_dict().items():
        np.testing.assert_array_equal(raw[name], a)
    assert bytes_of(f"raw/unet/{checkpoint.WEIGHTS}") != bytes_of(f"average/unet/{checkpoint.WEIGHTS}")
    refused("export", "run", "average", match="average: is there already; choose a new folder")
    refused("export", "raw", "again", match="raw: holds no run")


def test_the_best_checkpoint_can_be_exported(done, refused, trained, monkeypatch):
    losses = iter([0.2, 0.1, 0.3])
    monkeypatch.setattr(fit, "probe", lambda run, dataset: next(losses))
    out = done("train", "data", "--out", "new", "--steps", 6, "--checkpoint-every", 2, "--keep", 1, *SMALL)
    assert "step 4: loss" in out and ", loss of the averaged weights on fixed images 0.1000; saved" in out
    assert done("export", "new", "best", "--best") == "Wrote best, of step 4\n"
    assert bytes_of(f"best/unet/{checkpoint.WEIGHTS}") != bytes_of(f"new/unet/{checkpoint.WEIGHTS}")
    assert {path.name for path in Path("new/training").iterdir()} == {
        "best.safetensors", "state.safetensors", "state-000006.safetensors",
    }  # fmt: skip
    (trained / "run" / "training" / "best.safetensors").unlink()
    refused("export", "run", "none", "--best", match="run: holds no training/best.safetensors")


def test_an_export_that_fails_leaves_nothing(refused, trained, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minidiff.runs.checkpoint.write_json", full)
    refused("export", "run", "out", match="No space left on device")


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
    for module, function in ((drawing, "load_unet"), (cli.pictures, "load"), (cli.measure, "open_rival")):
        monkeypatch.setattr(module, function, None)
    for suffix in ("png", "gif", "npz", "json"):
        Path(f"folder.{suffix}").mkdir()
        os.mkfifo(f"fifo.{suffix}")
    for suffix, command in (
        ("png", ("noise", "picture.png", "--out")), ("png", ("sample", "run", "--out")),
        ("gif", ("sample", "run", "--gif")), ("npz", ("sample", "run", "--npz")), ("png", ("between", "run", "--out")),
        ("png", ("redraw", "run", "picture.png", "--out")),
        ("png", ("fill", "run", "picture.png", "mask.png", "--out")), ("json", ("bench", "--json")),
    ):  # fmt: skip
        refused(*command, f"{stem}.{suffix}", match=f"cannot write {stem}.{suffix}: {match}")


@pytest.mark.parametrize("name", ["x" * 300, "file/new", "file", "run", "."])
def test_new_folders_are_checked_before_the_work(refused, trained, monkeypatch, name):
    for module, function in ((state, "open_run"), (cli_evaluate, "is_pipeline"), (cli_explain, "load_pipeline")):
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
        ("evaluate", "run", "--against", "data"), ("explain", "run", "--prompt", "a"),
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


def test_a_training_overwrites_no_images(refused, data, tmp_path):
    for name in ("loss.png", "samples"):
        (tmp_path / name[:4]).mkdir()
        (tmp_path / name[:4] / name).mkdir()
        for command in ("train", "train-vae"):
            refused(command, data, "--out", name[:4], *SMALL, match=f"holds a {name} that is not of a run; choose")


@pytest.mark.parametrize("more", [(), ("--sampler", "ddpm"), ("--eta", 1)])
def test_the_seed_decides(done, trained, more):
    for name, seed in (("one.png", 0), ("two.png", 0), ("other.png", 1)):
        done("sample", "run", "--out", name, "--n", 3, "--steps", 3, "--seed", seed, *QUICK, *more)
    assert bytes_of("one.png") == bytes_of("two.png") != bytes_of("other.png")


def test_both_backends_draw_the_same(done, trained):
    for backend in ("numpy", "numba"):
        done("sample", "run", "--out", f"{backend}.png", "--n", 2, "--steps", 2, "--backend", backend, "--threads", 1)
    with Image.open("numpy.png") as one, Image.open("numba.png") as two:
        difference = np.abs(np.asarray(one, int) - np.asarray(two, int))
    assert difference.max() <= 1  # a float32's last bits may fall on either side of a rounding


def pipeline(folder, **changes):
    """A network that was never trained, as a diffusers folder."""
    md.save_unet(md.UNet(network(**changes), np.random.default_rng(0), "numpy"), Path(folder) / "unet")
    checkpoint.save_pipeline(folder, md.linear_schedule(50))
    return folder


COLOURS = dict(in_channels=3, out_channels=3)


@pytest.mark.parametrize("changes", [{}, COLOURS, {"sample_size": (2, 6)}, {**COLOURS, "sample_size": (5, 3)}])
def test_pictures_of_any_kind(done, tmp_path, changes):
    pipeline("net", **changes)
    done("sample", "net", "--n", 2, "--steps", 2, "--gif", "walk.gif", *QUICK)
    assert {"sheet.png", "walk.gif"} <= set(tree(tmp_path))


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"in_channels": 4, "out_channels": 4}, "net: its pictures have 4 channels; a sheet shows 1 or 3"),
        ({"out_channels": 2}, "the model makes .* both shapes must be equal"),
        (
            {
                "sample_size": 5, "block_out_channels": (8, 8), "down_block_types": ["DownBlock2D"] * 2,
                "up_block_types": ["UpBlock2D"] * 2,
            },
            "net: sample_size is 5x5, and the network halves 1 times",
        ),
    ],
)  # fmt: skip
def test_networks_that_cannot_be_drawn_from(refused, changes, match):
    pipeline("net", **changes)
    refused("sample", "net", "--n", 2, "--steps", 2, *QUICK, match=match)


def test_no_run_to_sample(refused, tmp_path, data):
    (tmp_path / "file").write_text("")
    for name in ("missing", "data", "file", "x" * 300, ""):
        refused("sample", name, match="give a run |File name too long")


def test_damaged_runs(refused, trained):
    unet = trained / "run" / "unet"
    weights, config = (unet / checkpoint.WEIGHTS).read_bytes(), json.loads((unet / "config.json").read_text())
    (unet / checkpoint.WEIGHTS).write_bytes(weights[:-1])
    refused("sample", "run", *QUICK, match=f"{checkpoint.WEIGHTS}: damaged or not safetensors")
    (unet / checkpoint.WEIGHTS).write_bytes(weights)
    for changes, match in (
        ({"act_fn": "gelu"}, "act_fn = 'gelu' is not supported"),
        ({"layers_per_block": 60}, "tells of"),
        ({"sample_size": 10**9}, "sample_size = 1000000000 is not supported"),
        ({"in_channels": 2}, "weights do not fit"),
    ):
        (unet / "config.json").write_text(json.dumps({**config, **changes}))
        refused("sample", "run", *QUICK, match=match)
    (unet / "config.json").write_text(json.dumps(config))
    scheduler = trained / "run" / "scheduler" / "scheduler_config.json"
    written = json.loads(scheduler.read_text())
    for config, match in (
        ({}, "(scheduler class|beta_schedule) None"),
        ({**written, "_class_name": "UniPCMultistepScheduler"}, "scheduler class 'UniPCMultistepScheduler' is not"),
        ({**written, "thresholding": True}, "thresholding = True is not supported"),
        ({**written, "num_train_timesteps": 10**12}, "num_train_timesteps must be an integer from 1 to"),
    ):
        scheduler.write_text(json.dumps(config))
        refused("sample", "run", *QUICK, match=f"scheduler_config.json: {match}")
    scheduler.unlink()
    refused("sample", "run", *QUICK, match="run: no scheduler/scheduler_config.json")


@pytest.mark.parametrize(
    "option, name, match",
    [
        ("out", "sheet.txt", "sheet.txt: no picture format ends so"), ("out", "sheet", "no picture format"),
        ("out", "missing/sheet.png", "cannot write missing/sheet.png"), ("out", "run", "no picture format"),
        ("gif", "walk.png", "walk.png: an animation is a GIF"), ("gif", "missing/walk.gif", "missing/walk.gif"),
    ],
)  # fmt: skip
def test_places_that_cannot_be_written(refused, trained, option, name, match):
    refused("sample", "run", f"--{option}", name, "--n", 1, "--steps", 1, *QUICK, match=match)


def test_more_than_the_memory_holds(refused, trained, monkeypatch):
    def too_large(*_, **__):
        raise MemoryError("Unable to allocate 3.00 TiB for an array with shape (1, 2)")

    monkeypatch.setattr(cli, "sample", too_large)
    refused("sample", "run", *QUICK, match="Unable to allocate 3.00 TiB")


# Noise


@pytest.mark.parametrize(
    "mode, suffix",
    [
        ("RGB", "jpg"), ("L", "png"), ("P", "gif"), ("RGBA", "png"), ("LA", "png"), ("1", "bmp"), ("CMYK", "jpg"),
        ("I;16", "png"), ("RGBA", "webp"), ("RGB", "tiff"), ("CMYK", "tif"),
    ],
)  # fmt: skip
def test_noise(done, mode, suffix):
    Image.effect_noise((40, 24), 80).convert("L").convert(mode).save(f"picture.{suffix}")
    assert done("noise", f"picture.{suffix}", "--out", "strip.png") == "Wrote strip.png\n"
    with Image.open("strip.png") as strip:
        assert strip.size[0] > 10 * 40 and strip.size[1] > 24


def test_noise_comes_from_the_seed(done):
    Image.new("RGB", (8, 8), "red").save("picture.png")
    for name, seed in (("one.png", 0), ("two.png", 0), ("other.png", 1)):
        done("noise", "picture.png", "--out", name, "--seed", seed)
    assert bytes_of("one.png") == bytes_of("two.png") != bytes_of("other.png")


def test_noise_for_large_and_thin_pictures(done):
    for name, size in {"large": (3000, 2000), "wide": (4000, 1), "high": (1, 4000), "tiny": (1, 1)}.items():
        Image.new("RGB", size, "teal").save(f"{name}.png")
        done("noise", f"{name}.png", "--out", "strip.png")
        with Image.open("strip.png") as strip:
            assert strip.size[0] < 10_000 and strip.size[1] < 1000


def test_no_picture(refused, tmp_path):
    Image.effect_noise((40, 40), 50).save("good.png")
    good = bytes_of("good.png")
    for name, content in {"empty.png": b"", "text.png": b"hello", "half.png": good[: len(good) // 2]}.items():
        Path(name).write_bytes(content)
        refused("noise", name, match=f"{name}: cannot be read as a picture")
    refused("noise", "missing.png", match="missing.png: no such picture file")
    refused("noise", ".", match="no such picture file")
    refused("noise", "good.png", "--out", "strip.xyz", match="strip.xyz: no picture format ends so")
    refused("noise", "good.png", "--out", "missing/strip.png", match="cannot write missing/strip.png")


def test_a_picture_bomb(refused):
    """A few kilobytes that claim 900 million pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    Path("bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )
    refused("noise", "bomb.png", match="bomb.png: cannot be read as a picture.*decompression bomb")
    Path("data").mkdir()
    shutil.move("bomb.png", "data/bomb.png")
    refused("train", "data", "--out", "run", "--size", 32, match="bomb.png: cannot be read as a picture")


# The demo


@pytest.fixture
def small_demo(monkeypatch):
    """The demo with a net, a training and pictures so small that they show nothing."""
    tiny = network(**COLOURS, sample_size=32, num_class_embeds=3)
    monkeypatch.setattr(demo, "default_config", lambda shape, num_class_embeds: tiny)
    for name, value in dict(TRAINING_STEPS=3, SAMPLES=2, STEPS=10, CHECKPOINT_EVERY=2).items():
        monkeypatch.setattr(demo, name, value)


PAGES = {
    "index.html", "forward.png", "data.png", "loss.png", "samples.png", "asked.png", "reverse.png", "reverse.gif",
}  # fmt: skip


def test_demo(done, small_demo, tmp_path):
    out = done("demo", "--threads", 1)
    assert re.search(r"Done in \d+ min \d+ s\. Open demo/index\.html\n$", out)
    assert PAGES | {"run"} <= set(tree(tmp_path / "demo"))
    assert len(rows(tmp_path / "demo" / "run")) == 3
    first = tree(tmp_path / "demo")
    assert "all 3 steps are done already" in done("demo", "--threads", 1)
    assert tree(tmp_path / "demo") == first


def test_demo_goes_on_where_it_was(done, run, small_demo, tmp_path, monkeypatch):
    done("demo", "--out", "whole", "--threads", 1, "--seed", 3)
    with monkeypatch.context() as patched:
        patched.setattr(cli_train, "stoppable", stop_after(1))
        code, out, _ = run("demo", "--out", "my demo", "--threads", 1, "--seed", 3)
    assert code == 130
    assert out.endswith("Saved at step 1. To go on: minidiff demo --out 'my demo' --seed 3\n")
    assert not (tmp_path / "my demo" / "index.html").exists()
    monkeypatch.setattr(demo.state, "new_run", None)  # it must not begin anew
    done(*shlex.split(out.partition("To go on: minidiff ")[2]))  # the very command that was printed
    assert rows(tmp_path / "my demo" / "run") == rows(tmp_path / "whole" / "run")
    assert (tmp_path / "my demo" / "samples.png").read_bytes() == (tmp_path / "whole" / "samples.png").read_bytes()


def test_demo_draws_what_was_left_undrawn(done, run, small_demo, tmp_path, monkeypatch):
    """Stopped in drawing, after the last step of training, it does not train again."""

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(demo, "_draw_samples", interrupted)
        assert run("demo", "--threads", 1)[0] == 130
    before = contents(tmp_path / "demo" / "run")["training/state.safetensors"]
    assert set(os.listdir(tmp_path / "demo")) == {"run"}
    out = done("demo", "--threads", 1)
    assert "all 3 steps are done already; only the images are sampled again" in out
    assert contents(tmp_path / "demo" / "run")["training/state.safetensors"] == before
    assert PAGES <= set(tree(tmp_path / "demo"))


def test_demo_leaves_other_runs_alone(refused, trained):
    match = r"run: is not the run of this demo \(its data is 'data', not 'cats_dogs'\); choose another --out"
    refused("demo", "--out", ".", "--threads", 1, match=match)


def test_demo_leaves_finished_and_continued_runs_alone(done, refused, small_demo):
    done("demo", "--threads", 1)
    refused("demo", "--threads", 1, "--seed", 1, match="demo/run: .*its seed is 0, not 1.*; choose another --out")
    done("train", "cats_dogs", "--out", "demo/run", "--resume", "--steps", 4)
    refused("demo", "--threads", 1, match="demo/run: .*its steps is 4, not 3.*; choose another --out")


def test_train_and_demo_exclude_each_other(refused, data):
    for held in ("demo", "demo/run"):
        with only_one(Path(held)):
            refused("demo", "--threads", 1, match=f"{held}: another process is training here")


def test_train_is_refused_where_a_demo_works(run, small_demo, data, monkeypatch):
    refusals = []

    def meanwhile(*_):
        for out in ("demo", "demo/run"):
            try:
                with only_one(Path(out)):
                    refusals.append("entered")
            except md.MinidiffError as error:
                refusals.append(str(error))
        raise md.MinidiffError("enough")

    monkeypatch.setattr(demo, "open_demo", meanwhile)
    run("demo", "--threads", 1)
    assert all("another process is training here" in refusal for refusal in refusals) and len(refusals) == 2
