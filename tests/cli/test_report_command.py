"""minidiff report, and the commands in it: each starts the same run again."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from small_commands import SMALL
from small_runs import idx_set, new_run
from small_text import bars, new_text_run

from minidiff.data.imaging import sheet, to_uint8
from minidiff.evaluation import run_facts, run_images
from minidiff.formats.run_state import read_state, state_file
from minidiff.sampling.prompts import escaped
from minidiff.sampling.text_to_image import text_to_image
from minidiff.training import loop, prior, recipes
from minidiff.training.command import command_of
from minidiff.training.state import open_run

STARTS = {
    "defaults": "train data",
    "sizes": "train data --width 8 --depth 2 --by-class --optimizer muon --lr 0.002 --warmup 3 --decay none --seed 7",
    "depth": "train data --depth 1 --ema-half-life 50,20.5 --accumulate 2",
    "flow": "train data --width 16 --objective flow --min-snr 5 --stratified",
    "edm": "train data --width 8 --objective edm --pad-crop 1 --no-flip",
    "improved": "train data --width 8 --objective epsilon --learned-variance --importance-sampling",
    "recipe": "train data --recipe ddpm --lr 0.003",
    "points": "train two_moons --width 8 --depth 2 --by-class",
    "line": "train line --objective epsilon",
    "autoencoder": "train-vae data --width 8 --kl 0.001",
    "classifier": "train-classifier data --lr 0.01",
}
QUICK = ("--backend", "numpy", "--threads", "1", "--steps", "1", "--batch-size", "2")


@pytest.fixture
def no_sheets(monkeypatch):
    monkeypatch.setattr(loop, "save_progress", lambda *_: None)


def facts(page):
    """The facts in a page."""
    text = re.search(r'<script type="application/json" id="facts">(.*?)</script>', Path(page).read_text("utf-8"))[1]
    return json.loads(text)


def start_of(folder):
    """What the state of a run says of how it was started."""
    return dict(read_state(state_file(Path(folder))).metadata)


@pytest.mark.parametrize("name", STARTS)
def test_the_command_starts_the_same_run(name, done, tmp_path, monkeypatch, no_sheets):
    small = recipes._four_levels((8, 8, 8, 8), norm_num_groups=4, dropout=0.1)
    monkeypatch.setitem(recipes.RECIPES, "ddpm", replace(recipes.RECIPES["ddpm"], network=small))
    idx_set(tmp_path / "data", n=12, height=16, width=16)
    done(*STARTS[name].split(), *QUICK, "--out", "first")
    words = command_of(open_run(Path("first")), "second")
    assert words[0] == "minidiff" and len(words) <= len(STARTS[name].split()) + len(QUICK) + 4  # and --no-flip
    done(*words[1:])
    assert start_of("second") == start_of("first")


def captioned(folder, caption="{}"):
    """A folder of images with captions."""
    folder.mkdir()
    dataset = bars()
    for i, image in enumerate(dataset.take(range(len(dataset)))):
        Image.fromarray(image).save(folder / f"{i}.png")
    with open(folder / "captions.csv", "w") as file:
        csv.writer(file).writerows(
            [("file_name", "text"), *((f"{i}.png", caption.format(c)) for i, c in enumerate(dataset.captions))]
        )


def test_the_command_of_a_text_run_has_the_copies_of_its_frozen_parts(done, tmp_path, no_sheets):
    captioned(tmp_path / "data")
    done("train-vae", "data", "--width", 8, *QUICK, "--out", "vae")
    done("train", "data", "--text", "--latent", "vae", "--width", 32, *QUICK, "--out", "first")
    words = command_of(open_run(Path("first")), "second")
    assert words[words.index("--latent") + 1] == "first"
    done(*words[1:])
    assert start_of("second") == start_of("first")


TUNED = {
    "dreambooth": "--method dreambooth",
    "dreambooth with a prior": "--method dreambooth --prior-prompt red --prior-weight 0.5 --lr 0.002",
    "lora": "--rank 2 --skip-bad",
    "lora with a prior": "--prior-prompt red",
    "lora without": "--prior-weight 0 --seed 3",
    "word": "--method textual-inversion --word <bar> --initial-word red",
    "word with a rate": "--method textual-inversion --word <bar> --initial-word red --lr 0.001",
}


@pytest.mark.parametrize("name", TUNED)
def test_the_command_of_a_run_that_tunes(name, done, tmp_path, monkeypatch, no_sheets):
    """Of DreamBooth without a prior too, whose state is otherwise that of a run of train --text."""
    monkeypatch.setattr(prior, "SAMPLES", 2)
    monkeypatch.setattr(prior, "STEPS", 2)
    new_text_run(tmp_path / "base")
    captioned(tmp_path / "data", "a {} <bar>" if name.startswith("word") else "{}")
    done("tune", "base", "data", *TUNED[name].split(), *QUICK, "--out", "first")
    words = command_of(open_run(Path("first")), "second")
    assert words[:3] == ["minidiff", "tune", str(tmp_path / "base")]
    done(*words[1:])
    assert start_of("second") == start_of("first")
    if name.startswith("dreambooth"):
        Path("base").rename("elsewhere")
        assert command_of(open_run(Path("first"))) is None


@pytest.mark.parametrize("options", ["--seed 3", "--lr 0.002 --accumulate 2"])
def test_the_command_of_consistency_tuning(options, done, tmp_path, no_sheets):
    """Its batch size is that of the base by default, here another one than the command's."""
    idx_set(tmp_path / "data", n=12, height=8, width=8)
    done("train", "data", "--width", 8, "--batch-size", 4, *QUICK[:-2], "--out", "base")
    done("distill", "base", *options.split(), *QUICK, "--out", "first")
    words = command_of(open_run(Path("first")), "second")
    assert words[:3] == ["minidiff", "distill", str(tmp_path / "base")]
    done(*words[1:])
    assert start_of("second") == start_of("first")
    Path("base").rename("elsewhere")
    assert command_of(open_run(Path("first"))) is None


def test_the_state_of_an_older_run_does_not_say_what_it_began_from(done, tmp_path, no_sheets):
    """It opens, as one that began from random weights."""
    state = new_text_run(tmp_path / "run").folder / "training" / "state.safetensors"
    tensors, metadata = load_file(state), dict(read_state(state).metadata)
    config = json.loads(metadata["config"])
    assert config.pop("begun_from") == ""
    save_file(tensors, state, metadata | {"config": json.dumps(config)})
    assert open_run(Path("run")).config.begun_from == ""


def test_what_no_command_starts_has_none(trained, tmp_path):
    run = open_run(Path("run"))
    assert command_of(run) is not None
    assert command_of(replace(run, config=replace(run.config, beta2=0.98))) is None
    assert command_of(replace(run, config=replace(run.config, rank=3))) is None
    assert command_of(new_run(tmp_path / "own")) is None  # a network that a program chose


def test_a_report_holds_what_the_files_of_the_runs_hold(done, trained):
    done("train", "data", "--out", "other", "--steps", 4, "--objective", "flow", *SMALL, "--checkpoint-every", 2)
    Path("other/evaluation").mkdir()
    figures = {"samples": {"frechet": 1.25, "kid": [0.5, 0.125], "agreement": {"0": 0.75}}, "baseline": {"frechet": 1}}
    Path("other/evaluation/figures.json").write_text(json.dumps({"figures": figures}))
    assert done("report", "run", "other", "--threads", 1).endswith("Wrote report.html\n")
    first, second = facts("report.html")
    assert (first["name"], second["name"]) == ("run", "other")
    for run in (first, second):
        assert run["log"] == Path(run["name"], "metrics.csv").read_text()
        header, *lines = Path(run["name"], "checkpoints.csv").read_text().split()
        assert [f"{step},{loss}" for step, loss in run["checkpoints"]] == lines
        assert len(run["trajectory"]["frames"]) == run_images.FRAMES
        assert run["command"].startswith("minidiff train")
    assert [step for step, _ in second["sheets"]] == [2, 4]
    settings = dict(second["settings"])
    assert settings["prediction type"] == "flow" and settings["steps"] == "4" and settings["Numba"]
    (evaluation,) = second["evaluations"]
    assert evaluation["columns"] == ["samples", "baseline"]
    assert evaluation["rows"] == [["frechet", "1.25", "1"], ["kid", "0.5 0.125", ""], ["agreement, 0", "0.75", ""]]


def test_a_page_needs_nothing_else_and_no_name_ends_its_script(done, trained):
    Path("run").rename("<script><b>x")
    done("report", "<script><b>x", "--out", "page.html", "--threads", 1)
    page = Path("page.html").read_text("utf-8")
    assert page.count("<script") == 2 and "<b>x" not in page
    assert not re.search(r'(src|href)="(?!#|data:)', page) and "{{" not in page
    assert facts("page.html")[0]["name"] == "<script><b>x"


@pytest.mark.parametrize("name", ["a/run", "b/run"])
def test_runs_of_one_name_go_by_their_paths(name, done, trained):
    for folder in ("a", "b"):
        Path(folder).mkdir()
    Path("run").rename(name)
    assert run_facts.facts_of(Path(name), name)["name"] == name


@pytest.mark.parametrize("kind", ["train swiss_roll", "train-vae data", "train-classifier data"])
def test_a_report_of_every_kind_of_run(kind, done, tmp_path):
    idx_set(tmp_path / "data", n=12, height=8, width=8)
    done(*kind.split(), "--out", "run", *QUICK)
    done("report", "run", "--threads", 1)
    (run,) = facts("report.html")
    assert run["trajectory"] is None and run["sheets"] and run["command"]


@pytest.mark.parametrize("shown", ["pixels", "decoded", "colours"])
def test_the_trajectory_of_prompts(shown, done, tmp_path, monkeypatch, no_sheets):
    """Captions of its dataset; at the end the images that text to image samples, until then latents as colours."""
    monkeypatch.setattr(run_images, "DECODED", 63 if shown == "colours" else 64)
    captioned(tmp_path / "data", "a ({}) <bar>")
    new_text_run(tmp_path / "base", latent=shown != "pixels")
    word = ("--method", "textual-inversion", "--word", "<bar>", "--initial-word", "red")
    done("tune", "base", "data", *word, *QUICK, "--out", "run")
    run = open_run(Path("run"))
    monkeypatch.setattr(run_images, "data_uri", np.asarray)
    found = run_images.trajectory(run)
    captions, factor = bars().captions, 2 if shown == "colours" else 1
    assert found["prompts"] == [f"a ({captions[i]}) <bar>" for i in (0, 3, 6, 9)]
    with run.optimizer.averaged():
        texts, rng = [escaped(prompt) for prompt in found["prompts"]], np.random.default_rng([0, 0])
        images = to_uint8(text_to_image(run.pipeline, texts, guidance=4, steps=run_images.STEPS, rng=rng))
    frames = [frame for _, frame in found["frames"]]
    assert [t for t, _ in found["frames"]][-1] == -1 and len(frames) == run_images.FRAMES
    assert {frame.shape for frame in frames[:-1]} == {(2 * 8 // factor + 3, 4 * 8 // factor + 5, 3)}
    expected = np.asarray(sheet(np.concatenate([images, images]), columns=4, scale=1, gap=factor))
    np.testing.assert_array_equal(frames[-1][: 8 + factor], expected[: 8 + factor])  # x_t
    assert ("latents as colours" in found["note"]) == (shown == "colours")


def test_a_text_run_whose_dataset_has_moved_is_not_sampled(done, tmp_path, no_sheets):
    captioned(tmp_path / "data")
    new_text_run(tmp_path / "base")
    done("tune", "base", "data", "--method", "dreambooth", *QUICK, "--out", "run")
    Path("data").rename("elsewhere")
    done("report", "run", "--threads", 1)
    (run,) = facts("report.html")
    assert run["trajectory"]["frames"] == [] and f"{tmp_path / 'data'}: no such" in run["trajectory"]["note"]


def test_a_run_that_is_being_written_is_reported_up_to_its_last_whole_line(done, trained):
    log = Path("run/metrics.csv")
    whole = log.read_text()
    log.write_text(whole + "4,0.1,0.")
    done("report", "run", "--threads", 1)
    assert facts("report.html")[0]["log"] == whole


def test_damage_is_passed_over_or_named(done, refused, trained):
    Path("run/samples/step-000003.png").write_bytes(b"no image")
    Path("run/evaluation").mkdir()
    Path("run/evaluation/figures.json").write_text('{"figures": [1]}')
    done("report", "run", "--threads", 1)
    (run,) = facts("report.html")
    assert run["sheets"] == [] and run["evaluations"] == []
    Path("run/evaluation/figures.json").write_text('{"figures": {"samples": {"a": [1, "x"], "b": null, "c": 2}}}')
    done("report", "run", "--threads", 1)
    assert facts("report.html")[0]["evaluations"][0]["rows"] == [["c", "2"]]
    refused("report", "nowhere", match="nowhere: no such folder")
    refused("report", "data", match="data: holds no run")
    refused("report", "run", "--out", "page.png", match=r"page.png.*ends in .html")
    refused("report", "run", "--out", "no/page.html", match="no such folder")
    refused("report", match="Missing argument")
