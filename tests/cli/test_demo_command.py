"""minidiff demo."""

import os
import re
import shlex
from pathlib import Path

import pytest
from small_commands import COLOURS, stop_after
from small_runs import contents, network, rows, tree

import minidiff as md
from minidiff.cli import demo_pages, training_bar
from minidiff.formats.run_lock import lock_run


@pytest.fixture
def small_demo(monkeypatch):
    """The demo with a net, a training and pictures so small that they show nothing."""
    tiny = network(**COLOURS, sample_size=32, num_class_embeds=3)
    monkeypatch.setattr(demo_pages, "default_config", lambda shape, num_class_embeds: tiny)
    for name, value in dict(TRAINING_STEPS=3, SAMPLES=2, STEPS=10, CHECKPOINT_EVERY=2).items():
        monkeypatch.setattr(demo_pages, name, value)


PAGES = {
    "index.html", "forward.png", "data.png", "loss.png", "samples.png", "classes.png", "reverse.png", "reverse.gif",
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
        patched.setattr(training_bar, "stoppable", stop_after(1))
        code, out, _ = run("demo", "--out", "my demo", "--threads", 1, "--seed", 3)
    assert code == 130
    assert out.endswith("Saved at step 1. To resume: minidiff demo --out 'my demo' --seed 3\n")
    assert not (tmp_path / "my demo" / "index.html").exists()
    monkeypatch.setattr(demo_pages.state, "new_run", None)  # it must not begin anew
    done(*shlex.split(out.partition("To resume: minidiff ")[2]))  # the very command that was printed
    assert rows(tmp_path / "my demo" / "run") == rows(tmp_path / "whole" / "run")
    assert (tmp_path / "my demo" / "samples.png").read_bytes() == (tmp_path / "whole" / "samples.png").read_bytes()


def test_demo_samples_after_an_interruption(done, run, small_demo, tmp_path, monkeypatch):
    """Stopped during sampling, after the last step of training, it does not train again."""

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(demo_pages, "_write_samples", interrupted)
        assert run("demo", "--threads", 1)[0] == 130
    before = contents(tmp_path / "demo" / "run")["training/state.safetensors"]
    assert set(os.listdir(tmp_path / "demo")) == {"run"}
    out = done("demo", "--threads", 1)
    assert "all 3 steps are done already; only the images are sampled again" in out
    assert contents(tmp_path / "demo" / "run")["training/state.safetensors"] == before
    assert PAGES <= set(tree(tmp_path / "demo"))


def test_demo_leaves_other_runs_alone(refused, trained):
    match = r"run: is not the run of this demo \(its data is '.*data', not 'cats_dogs'\); choose another --out"
    refused("demo", "--out", ".", "--threads", 1, match=match)


def test_demo_leaves_finished_and_continued_runs_alone(done, refused, small_demo):
    done("demo", "--threads", 1)
    refused("demo", "--threads", 1, "--seed", 1, match="demo/run: .*its seed is 0, not 1.*; choose another --out")
    done("train", "cats_dogs", "--out", "demo/run", "--resume", "--steps", 4)
    refused("demo", "--threads", 1, match="demo/run: .*its steps is 4, not 3.*; choose another --out")


def test_train_and_demo_exclude_each_other(refused, data):
    for held in ("demo", "demo/run"):
        with lock_run(Path(held)):
            refused("demo", "--threads", 1, match=f"{held}: another process is training here")


def test_train_is_refused_where_a_demo_works(run, small_demo, data, monkeypatch):
    refusals = []

    def meanwhile(*_):
        for out in ("demo", "demo/run"):
            try:
                with lock_run(Path(out)):
                    refusals.append("entered")
            except md.MinidiffError as error:
                refusals.append(str(error))
        raise md.MinidiffError("enough")

    monkeypatch.setattr(demo_pages, "open_demo", meanwhile)
    run("demo", "--threads", 1)
    assert all("another process is training here" in refusal for refusal in refusals) and len(refusals) == 2
