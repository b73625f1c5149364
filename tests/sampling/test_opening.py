"""Opened folders: the weights are those that training put there, bit for bit, and each file is read once."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import own_process
import pytest
import small_pipeline
import small_text
from PIL import Image
from small_commands import COLOURS, pipeline
from small_runs import go_on, idx_set, new_points_run, new_run, refused
from small_text import new_text_run

import minidiff
from minidiff.data import open_dataset
from minidiff.errors import MinidiffWarning
from minidiff.formats.run_networks import read_unet
from minidiff.formats.run_state import WrongKind, best_file, kept_states, read_state, state_file, step_file
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import text_to_image
from minidiff.training.checkpoints import read_losses

CHOICES = ["raw", "best", 2, 4]


@pytest.fixture(scope="module")
def unet_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unet"
    run = new_run(folder, steps=6)
    go_on(run, checkpoint_every=2, keep=3)
    return run


def expected(run, choice):
    """The flat weights of a choice."""
    losses = read_losses(run.folder)
    step = min(losses, key=lambda step: losses[step]) if choice == "best" else choice
    path = state_file(run.folder) if choice == "raw" else step_file(run.folder, step)
    return read_state(path).buffers["p" if choice == "raw" else "ema"].read()


def flat(parameters):
    return np.concatenate([p.numpy().ravel() for p in parameters])


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_unet(unet_run, choice, backend):
    opened = open_pipeline(unet_run.folder, backend, choice)
    unet = opened.unet
    best = read_state(best_file(unet_run.folder)).step
    assert opened.step == {"raw": 6, "best": best}.get(choice, choice)
    assert unet.config == unet_run.unet.config and {p.backend.name for p in unet.parameters()} == {backend}
    np.testing.assert_array_equal(flat(unet.parameters()), expected(unet_run, choice))


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("latent, frozen", [(False, False), (True, True)])
def test_a_pipeline(tmp_path, choice, latent, frozen):
    run = new_text_run(tmp_path, steps=6, latent=latent, frozen=frozen)
    go_on(run, checkpoint_every=2, keep=3, dataset=small_text.bars())
    pipeline = open_pipeline(tmp_path, "numpy", choice)
    trained = [pipeline.unet] if frozen else [pipeline.unet, pipeline.text_encoder]
    np.testing.assert_array_equal(flat(p for part in trained for p in part.parameters()), expected(run, choice))
    for name in ("text_encoder", "vae") if frozen else ():
        got, own = (getattr(parts, name).state_dict() for parts in (pipeline, run.pipeline))
        assert got.keys() == own.keys()
        for key, a in got.items():
            np.testing.assert_array_equal(a, own[key])
    assert pipeline.sampler == run.pipeline.sampler and pipeline.tokenizer.vocab == run.pipeline.tokenizer.vocab


def test_refusals(unet_run, tmp_path):
    refused(open_pipeline, tmp_path, "numpy", "raw", match="holds no run")
    match = "keeps no checkpoint of step 3; choose one that is there: 2, 4, 6"
    refused(open_pipeline, unet_run.folder, "numpy", 3, match=match)
    for weights in ("raw", "best", 2, None):
        with pytest.raises(
            WrongKind, match="is the run of a U-Net that takes no prompt; give a run of minidiff train -"
        ):
            open_pipeline(unet_run.folder, "numpy", weights, kind="text")
    match = "is the run of a U-Net that takes no prompt; give a run of minidiff train --text"
    refused(text_to_image, open_pipeline(unet_run.folder, "numpy"), ["a cat"], match=match)


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path):
    run = new_run(tmp_path, steps=4)
    go_on(run, checkpoint_every=2, keep=2)
    step_2 = read_unet(read_state(kept_states(tmp_path)[2]), "p", "numpy")
    for path in (state_file(tmp_path), step_file(tmp_path, 4)):
        path.unlink()
        path.write_bytes(b"damaged")
    best_file(tmp_path).unlink()
    with pytest.warns(MinidiffWarning, match="Going back to step 2, state-000002.safetensors.$"):
        unet = open_pipeline(tmp_path, "numpy", "raw").unet
    np.testing.assert_array_equal(flat(unet.parameters()), flat(step_2.parameters()))


# Every file that a command opens, counted by Python itself; safetensors' own look at a header is not Python's.
COUNT_OPENS = """
import collections, contextlib, io, json, os, sys
opened = collections.Counter()

def count(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        path = os.path.relpath(arguments[0])
        if path.endswith((".json", ".safetensors")) and path.split(os.sep)[0] in folders and os.path.exists(path):
            opened[path] += 1

from minidiff.cli.app import main
folders, counts = json.loads(os.environ["FOLDERS"]), {}
sys.addaudithook(count)
for command in json.loads(os.environ["COMMANDS"]):
    sys.argv = ["minidiff", *command.split(), "--backend", "numpy", "--threads", "1"]
    opened.clear()
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as done:
            assert not done.code, command
    counts[command] = dict(opened)
print(json.dumps(counts))
"""
PROMPT = "--prompt red --steps 2"
COMMANDS = [
    *(f"sample {folder} --n 1 --steps 2" for folder in ("unet", "classes", "net", "plain")),
    *(f"sample unet --n 1 --steps 2 {weights}" for weights in ("--raw", "--best", "--step 2", "--sampler euler")),
    "sample classes --n 1 --steps 2 --guidance 2 --class b",
    *(f"sample points --n 1 --steps 2 {weights}" for weights in ("", "--raw", "--best", "--step 2")),
    *(f"sample {folder} {PROMPT}" for folder in ("text", "latent", "sd")),
    *(f"sample text {PROMPT} {weights}" for weights in ("--raw", "--best", "--step 2")),
    *(f"redraw {folder} image.png --n 1 --steps 2" for folder in ("unet", "classes", "plain")),
    *(f"redraw {folder} image.png --n 1 {PROMPT}" for folder in ("text", "sd")),
    *(f"fill {folder} image.png image.png --n 1 --steps 2" for folder in ("unet", "classes")),
    *(f"fill {folder} image.png image.png --n 1 {PROMPT}" for folder in ("text", "sd")),
    *(f"between {folder} --n 2 --steps 2" for folder in ("unet", "classes")),
    *(f"explain {folder} {PROMPT} --out {folder}-explained" for folder in ("text", "sd")),
    *(f"evaluate unet --against data --n 16 --steps 2 {weights}" for weights in ("", "--raw")),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of every kind, an image and a dataset."""
    place = tmp_path_factory.mktemp("folders")
    go_on(new_run(place / "unet", steps=4), 2, keep=3)
    new_run(place / "classes", num_class_embeds=4)
    (place / "classes" / "classes.json").write_text('["a", "b", "c"]')
    by_class = new_points_run(place / "points", "two_moons", steps=4, classes=("upper", "lower"))
    go_on(by_class, 2, dataset=open_dataset("two_moons"), keep=3)
    go_on(new_text_run(place / "text", steps=4), 2, dataset=small_text.bars(), keep=3)
    go_on(new_text_run(place / "latent", steps=4, latent=True, frozen=True), 2, dataset=small_text.bars(), keep=3)
    pipeline(place / "net", **COLOURS)
    pipeline(place / "plain")
    for path in (place / "plain" / "unet").iterdir():
        path.rename(place / "plain" / path.name)
    small_pipeline.saved(place / "sd")
    Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(place / "image.png")
    idx_set(place / "data", 200)
    return place


def test_each_json_is_opened_once_and_weights_at_most_twice(folders, monkeypatch):
    monkeypatch.chdir(folders)
    names = json.dumps([path.name for path in folders.iterdir()])
    said, _ = own_process.run(COUNT_OPENS, FOLDERS=names, COMMANDS=json.dumps(COMMANDS))
    counts = json.loads(said)
    assert list(counts) == COMMANDS
    for command, opened in counts.items():
        assert any(path.endswith("scheduler_config.json") for path in opened), f"{command}: {opened}"
        assert any(path.endswith(".safetensors") for path in opened), f"{command}: {opened}"
        most = {path: 1 if path.endswith(".json") else 2 for path in opened}
        assert {path: n for path, n in opened.items() if n > most[path]} == {}, command


def test_the_walk_to_the_first_kernel_is_the_documented_one(folders, monkeypatch, run):
    """The functions that docs/contributing.md lists are called, in that order."""
    monkeypatch.chdir(folders)
    page = (Path(__file__).parents[2] / "docs" / "contributing.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `(.+?)` \| `(.+?)` \|", page, re.MULTILINE)
    walk = [f"{module} {function}" for _, module, function in rows]
    assert [int(number) for number, *_ in rows] == list(range(1, len(rows) + 1)) and 20 < len(rows) <= 25
    package, calls = Path(minidiff.__file__).parent, []

    def called(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(package):
            calls.append(f"{path.relative_to(package).as_posix()} {frame.f_code.co_qualname}")

    sys.setprofile(called)
    try:
        assert run("sample", "unet", "--n", 1, "--steps", 1, "--backend", "numpy", "--threads", 1)[0] == 0
    finally:
        sys.setprofile(None)
    rest = iter(calls)
    assert [step for step in walk if step not in rest] == []
