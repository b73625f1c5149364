"""What a folder holds is said by kind, and a missing one is called missing, whatever the command."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import idx_set, new_points_run, new_run, tree
from small_text import AUTOENCODER, new_text_run

from minidiff.formats.folders import find
from minidiff.formats.run_state import state_file
from minidiff.models.config import ClassifierConfig
from minidiff.training import state
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.classifier_run import ClassifierRun
from minidiff.training.kinds.vae_run import VAERun

NAMES = ("lying", "standing")
CLASSIFIER = ClassifierConfig(1, 8, NAMES)


@pytest.fixture
def kinds(tmp_path, monkeypatch):
    """A run of each kind, and each exported."""
    monkeypatch.chdir(tmp_path)
    config = TrainConfig("bars", steps=8, batch_size=4, warmup=3, backend="numpy")
    classifier = state.new_run(ClassifierRun, Path("classifier"), replace(config, classes=NAMES), CLASSIFIER)
    vae = state.new_run(VAERun, Path("vae"), config, AUTOENCODER)
    made = new_run(Path("unet")), new_text_run(Path("text")), vae, classifier
    for run in (*made, new_points_run(Path("points"))):
        state.export(run, Path(f"exported-{run.folder}"))
    for name in ("picture.png", "mask.png"):
        Path(name).touch()
    idx_set(tmp_path / "data")
    return tmp_path


COMMANDS = {
    "sample": ("unet points", "sample {}"),
    "sample --prompt": ("text", "sample {} --prompt a"),
    "redraw": ("unet", "redraw {} picture.png"),
    "fill": ("unet", "fill {} picture.png mask.png"),
    "between": ("unet", "between {}"),
    "explain": ("text", "explain {} --prompt a"),
    "evaluate": ("unet text", "evaluate {} --against data"),
    "export": ("unet text vae classifier", "export {} new"),
    "export --best": ("unet text vae classifier", "export {} new --best"),
    "sample --classifier": ("classifier", "sample unet --classifier {}"),
    "train --latent": ("vae text", "train data --text --out new --latent {}"),
    "train --text-encoder": ("text", "train data --text --out new --text-encoder {}"),
    "train": ("", "train {} --out new"),
    "evaluate --against": ("", "evaluate unet --against {}"),
}
HELD = {
    "unet": "a U-Net that takes no prompt; ",
    "text": "a text-conditional U-Net, which needs a prompt; ",
    "vae": "an autoencoder, which does not sample; ",
    "classifier": "a classifier of noisy images, which does not sample; ",
    "points": "an MLP on points, which has no images; ",
}


def refused(run, command, match):
    before = tree(Path())
    code, _, err = run(*command.split())
    assert code == 2 and err.startswith(f"minidiff: {match}") and err.count("\n") == 1, err
    assert tree(Path()) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_folder_is_no_such_folder(run, kinds, name):
    refused(run, COMMANDS[name][1].format("missing"), "missing: no such folder")
    refused(run, COMMANDS[name][1].format("data/below/it"), "data/below/it: no such folder")


@pytest.mark.parametrize("kind", HELD)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_of_another_kind(run, kinds, name, kind):
    wanted, command = COMMANDS[name]
    if wanted and kind not in wanted.split():
        refused(run, command.format(kind), f"{kind}: is the run of {HELD[kind]}give ")
        refused(run, command.format(f"exported-{kind}"), f"exported-{kind}: holds {HELD[kind]}give ")


def kind_of(folder):
    return find(folder, *HELD).kind


def test_the_kind_is_found_whatever_is_left_of_a_folder(kinds):
    for kind in HELD:
        for folder in (Path(kind), Path(f"exported-{kind}")):
            assert kind_of(folder) == kind
        state_file(Path(kind)).write_bytes(b"damaged")
        assert kind_of(Path(kind)) == kind  # of the state of step 0
        shutil.rmtree(Path(kind) / "training")
        assert kind_of(Path(kind)) == kind
    assert kind_of(Path("unet/unet")) == "unet" and kind_of(Path("vae/vae")) == "vae"
    assert kind_of(Path("classifier/classifier")) == "classifier"
    assert kind_of(Path("points/mlp")) == "points"
    assert kind_of(Path("text/unet")) is None and kind_of(Path("data")) is None
