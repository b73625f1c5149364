"""minidiff train --resume, and Ctrl-C before it."""

import os
import re
import shlex
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from small_commands import SMALL, noises, process, stop_after
from small_runs import contents, idx_set, rows, tree

from minidiff.cli import app, training_bar
from minidiff.formats import networks
from minidiff.training import start, state
from minidiff.training.state import state_file


def test_resume_goes_on(done, data, tmp_path):
    done("train", "data", "--out", "whole", "--steps", 6, "--checkpoint-every", 2, *SMALL)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training_bar, "stoppable", stop_after(3))
        patched.setattr(sys, "argv", "minidiff train data --out run --steps 6".split() + [str(a) for a in SMALL])
        with pytest.raises(SystemExit) as caught:
            app.main()
    assert caught.value.code == 130
    assert len(rows(tmp_path / "run")) == 3
    out = done("train", "data", "--out", "run", "--resume", "--checkpoint-every", 2)
    assert "Done: step 6" in out
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert (
        contents(tmp_path / "run")["training/state.safetensors"]
        == contents(tmp_path / "whole")["training/state.safetensors"]
    )


def test_resuming_a_finished_run_changes_nothing(done, trained):
    before = tree(trained)
    out = done("train", "data", "--out", "run", "--resume")
    assert "all 3 steps are done already; to continue, give a larger --steps" in out
    assert tree(trained) == before


def test_resuming_a_finished_run_mends_its_export(done, trained):
    before = tree(trained)
    weights = trained / "run" / "unet" / networks.WEIGHTS
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
    monkeypatch.setattr(start, "open_dataset", None)
    for option, value in {"threads": 9999, "backend": "tpu", "steps": 0, "size": 0}.items():
        refused("train", "cifar10", "--out", "run", f"--{option}", value, match=option)


def test_other_data(refused, trained):
    idx_set(trained / "other", n=11)
    refused("train", "other", "--out", "run", "--resume", match="other: is not the dataset of run; give")
    match = r"run: was started with \S+/data, not cats_dogs"
    refused("train", "cats_dogs", "--out", "run", "--resume", match=match)
    shutil.rmtree("data")
    refused("train", "data", "--out", "run", "--resume", match="data: no such folder or file")
    idx_set(trained / "data", height=8)
    refused("train", "data", "--out", "run", "--resume", match=r"data: its images have shape .*, the run's \(4, 4, 1\)")


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
    refused("train", "moved", "--out", "../run", "--resume", match="moved: is not the dataset of ../run; give")


def test_a_run_of_before_sets_were_known_by_their_pictures(done, refused, trained):
    """It goes by the path, once more."""
    run = state.open_run(Path("run"))
    state.save(replace(run, config=replace(run.config, data="data", fingerprint="")))
    shutil.copytree("data", "moved")
    refused("train", "moved", "--out", "run", "--resume", match="run: was started with data, not moved")
    done("train", "./data", "--out", "run", "--resume", "--steps", 4)
    done("train", "moved", "--out", "run", "--resume", "--steps", 5)


def test_a_folder_may_be_renamed(done, refused, tmp_path):
    """Though the only class of a folder without classes is called as the folder is."""
    noises(tmp_path / "pets")
    done("train", "pets", "--out", "run", "--steps", 1, *SMALL)
    (tmp_path / "pets").rename("animals")
    done("train", "animals", "--out", "run", "--resume", "--steps", 2)
    noises(tmp_path / "others")
    for more in ([], ["--skip-bad"]):
        refused("train", "others", "--out", "run", "--resume", *more, match="others: is not the dataset of run")


def test_a_damaged_state_falls_back_and_says_so(done, refused, trained):
    done("train", "data", "--out", "run", "--resume", "--steps", 6)
    whole = rows(trained / "run")
    path = state_file(trained / "run")
    path.write_bytes(path.read_bytes()[:-100])
    out = done("train", "data", "--out", "run", "--resume", "--steps", 6)  # a warning that is printed is no error
    assert re.search(
        r"(?m)^run/training/state.safetensors: damaged or not .*Going back to step 3, state-000003\.safetensors\.$", out
    )
    assert "Done: step 6" in out and rows(trained / "run") == whole
    for damaged in (trained / "run" / "training").iterdir():
        damaged.write_bytes(b"")
    refused("train", "data", "--out", "run", "--resume", match="state.safetensors: damaged or not safetensors")


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
    assert "Stopping after this step; press Ctrl-C again to stop at once without saving." in out
    step = len(rows(tmp_path / "my run"))
    assert f"Saved at step {step}. To resume: minidiff train --out 'my run' --resume\n" in out
    done(*shlex.split(out.partition("To resume: minidiff ")[2]))  # the very command that was printed
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
    assert state.last_step(tmp_path / "run") == len(rows(tmp_path / "run")) >= 5


def test_ctrl_c_twice_breaks_off_at_once(done, data, tmp_path):
    """The second comes while the first one's checkpoint is being written."""
    hang = """
import os, time
from minidiff.training import loop
save_state, fsync = loop.save_state, os.fsync
def slow(file):
    print("now at the disk", flush=True)
    time.sleep(100)
def slow_save(run, keep):
    os.fsync = slow
    save_state(run, keep)
loop.save_state = slow_save
"""
    child = process("train", "data", "--out", "run", "--steps", 500, "--keep", 3, *SMALL, code=hang)
    folder = tmp_path / "run"
    send_after(3, child, folder, signal.SIGINT)
    while "now at the disk" not in child.stdout.readline():
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
import minidiff.cli.app
from minidiff.training import start
def slow(*_, **__):
    print("opening", flush=True)
    time.sleep(100)
start.open_dataset = slow
"""
    child = process("train", "data", "--out", "run", code=wait)
    assert child.stdout.readline() == "opening\n"
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=50)
    assert (child.returncode, err) == (130, "minidiff: stopped\n")
    assert not (tmp_path / "run").exists()
