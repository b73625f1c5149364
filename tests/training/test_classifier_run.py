"""minidiff train-classifier: the run of a classifier of noisy images, and samples guided by it."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_runs import bars, contents, go_on, idx_set, reopen, tree

from minidiff.data.imaging import to_float
from minidiff.diffusion.forward import q_sample
from minidiff.errors import MinidiffError
from minidiff.formats.networks import load_classifier
from minidiff.models.config import ClassifierConfig
from minidiff.training import state
from minidiff.training.checkpoints import read_losses
from minidiff.training.classifier_run import ClassifierRun
from minidiff.training.config import TrainConfig
from minidiff.training.recipes import SCHEDULE

NAMES = ("lying", "standing")
NETWORK = ClassifierConfig(1, 8, NAMES)
QUICK = ("--backend", "numpy", "--threads", 1)


def a_run(folder, steps=8, **changes):
    config = TrainConfig("bars", steps=steps, warmup=3, seed=5, classes=NAMES, flip=False, **changes)
    return state.new_run(ClassifierRun, folder, config, NETWORK)


@pytest.mark.parametrize("backend, accumulate", [("numpy", 1), ("numpy", 2), ("numba", 1)])
def test_a_stopped_run_resumes_bit_for_bit(tmp_path, backend, accumulate):
    settings, dataset = dict(backend=backend, accumulate=accumulate, batch_size=4), bars(10)
    go_on(a_run(tmp_path / "whole", **settings), dataset=dataset)
    go_on(a_run(tmp_path / "run", **settings), stop_at=5, dataset=dataset)
    again = reopen(tmp_path / "run")
    assert isinstance(again, ClassifierRun) and again.step == 5
    go_on(again, dataset=dataset)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_it_learns_the_classes_of_noisy_images(tmp_path):
    """Of held-out images over 90 % with little noise, about half of pure noise; the weights are the averaged ones."""
    train, test = bars(400), bars(200, seed=1)
    go_on(a_run(tmp_path, 60, batch_size=32, lr=3e-3, ema=0.9, backend="numpy"), 60, dataset=train)
    classifier, rng = load_classifier(tmp_path, "numpy"), np.random.default_rng(0)
    assert not any(p.requires_grad for p in classifier.parameters())
    x0 = to_float(test.take(np.arange(200)))
    for t, low, high in ((50, 0.9, 1.0), (999, 0.35, 0.65)):
        t = np.full(200, t)
        x_t = q_sample(SCHEDULE, x0, t, rng.standard_normal(x0.shape, dtype=np.float32))
        right = classifier(x_t, SCHEDULE.alpha_bar(t)).numpy().argmax(1) == test.labels
        assert low <= right.mean() <= high, right.mean()
    (loss,) = read_losses(tmp_path).values()
    assert loss < np.log(2) - 0.1  # of a guess


def test_the_command_and_its_options(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    idx_set(Path("data"))
    start = ("train-classifier", "data", "--out", "clf", "--checkpoint-every", 2, "--batch-size", 3, *QUICK)
    code, out, err = run(*start, "--steps", 3)
    assert (code, err) == (0, "") and "The classifier: clf/classifier" in " ".join(out.split())
    assert {path.name for path in Path("clf/samples").iterdir()} == {"step-000002.png", "step-000003.png"}
    code, out, _ = run("train", "--out", "clf", "--resume", "--steps", 4)
    assert code == 0 and "Done: step 4" in out
    code, _, err = run("train-classifier", "--out", "clf", "--resume", "--steps", 5, "--batch-size", 2)
    assert code == 2 and "--batch-size 3, not 2" in err
    code, _, _ = run("export", "clf", "new")
    assert code == 0 and [path.name for path in Path("new").iterdir()] == ["classifier"]
    weights = (load_classifier(folder, "numpy").state_dict() for folder in ("clf", "new"))
    for a, b in zip(*(w.values() for w in weights), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_single_class_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("train-classifier", "emoji", "--out", "clf", *QUICK)
    assert code == 2 and "emoji: has a single class, and a classifier needs two" in err and err.count("\n") == 1
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("damage", [{"classes": ["a", "b", "c"]}, {"in_channels": 3}, {"classes": ["a"]}])
def test_a_damaged_configuration(tmp_path, damage):
    a_run(tmp_path, backend="numpy")
    path = tmp_path / "classifier" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(MinidiffError, match=r"classifier/"):
        load_classifier(tmp_path, "numpy")
