"""minidiff distill, and sampling from what it makes."""

import json

import numpy as np
from PIL import Image
from small_commands import QUICK, SMALL, bytes_of, stop_after
from small_runs import rows
from small_text import new_text_run

from minidiff.cli import training_bar

STEPS = ("--steps", 4, *QUICK)


def test_from_a_run_to_samples_in_two_evaluations(done, trained):
    out = done("distill", "run", "--out", "few", *STEPS)
    assert "To sample: minidiff sample few" in out
    assert len(rows(trained / "few")) == 4 and (trained / "few" / "samples" / "step-000004.png").exists()
    assert json.loads(bytes_of("few/scheduler/scheduler_config.json"))["_class_name"] == "LCMScheduler"
    done("sample", "few", "--n", 3, "--npz", "two.npz", *QUICK)
    done("sample", "few", "--n", 3, "--steps", 2, "--npz", "again.npz", *QUICK)
    done("sample", "few", "--n", 3, "--steps", 1, "--npz", "one.npz", *QUICK)
    two, again, one = (np.load(f"{name}.npz")["arr_0"] for name in ("two", "again", "one"))
    np.testing.assert_array_equal(two, again)
    assert (two != one).any()
    done("sample", "few", "--n", 3, "--out", "few.png", *QUICK)
    done("sample", "few", "--like", "few.png", "--npz", "like.npz", *QUICK)
    np.testing.assert_array_equal(np.load("like.npz")["arr_0"], two)
    done("sample", "run", "--n", 3, "--steps", 2, "--out", "ddim.png", *QUICK)
    done("sample", "few", "--like", "ddim.png", "--sampler", "consistency", "--npz", "instead.npz", *QUICK)
    done("report", "few", "--out", "few.html")


def test_ctrl_c_and_resume(done, run, trained, monkeypatch):
    done("distill", "run", "--out", "whole", *STEPS)
    with monkeypatch.context() as patched:
        patched.setattr(training_bar, "stoppable", stop_after(2))
        code, out, _ = run("distill", "run", "--out", "few", *STEPS)
    assert code == 130 and "Saved at step 2. To resume: minidiff train --out few --resume" in out
    done("distill", "--out", "few", "--resume", *QUICK[:2])
    assert bytes_of("few/metrics.csv") == bytes_of("whole/metrics.csv")
    assert bytes_of("few/unet/diffusion_pytorch_model.safetensors") == bytes_of(
        "whole/unet/diffusion_pytorch_model.safetensors"
    )


def test_with_prompts_guidance_is_disabled_by_default(done, tmp_path):
    new_text_run(tmp_path / "base")
    (tmp_path / "data").mkdir()
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / "data" / f"{i}.png")
    (tmp_path / "data" / "captions.csv").write_text("file_name,text\n0.png,red\n1.png,green\n2.png,blue bar\n")
    done("distill", "base", "data", "--out", "few", "--steps", 1, *SMALL)
    for name, options in {"default": (), "one": ("--guidance", 1), "four": ("--guidance", 4)}.items():
        done("sample", "few", "--prompt", "red bar", "--npz", f"{name}.npz", *options, *QUICK)
    default, one, four = (np.load(f"{name}.npz")["arr_0"] for name in ("default", "one", "four"))
    np.testing.assert_array_equal(default, one)
    assert (one != four).any()


def test_mistakes_are_one_line(refused, trained, done):
    refused("distill", "--out", "few", match="RUN is missing: give a run of minidiff train, or a diffusers folder")
    refused("distill", "run", "--out", "run", "--resume", match="--resume continues with the RUN and DATA of run")
    refused("distill", "nothing", "--out", "few", match="nothing: no such folder; give a run of minidiff train")
    refused("distill", "--out", "run", "--resume", match="run: is no run of minidiff distill; resume it with minidiff")
    refused("distill", "run", "--out", "run", *STEPS, match="run: holds a run already")
    refused("sample", "run", "--sampler", "consistency", "--steps", 51, *QUICK, match="from 1 to 50 for consistency")
