"""minidiff train-classifier: the run of a classifier of noisy images, and samples guided by it."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_commands import noises
from small_runs import bars, contents, go_on, idx_set, reopen

from minidiff.data.dataset import from_arrays
from minidiff.data.imaging import to_float
from minidiff.diffusion.forward import q_sample
from minidiff.errors import MinidiffError
from minidiff.formats.networks import load_classifier
from minidiff.models.config import ClassifierConfig
from minidiff.training import state
from minidiff.training.checkpoints import read_losses
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.classifier_run import ClassifierRun
from minidiff.training.recipes import SCHEDULE

NAMES = ("lying", "standing")
NETWORK = ClassifierConfig(1, 8, NAMES)
QUICK = ("--backend", "numpy", "--threads", 1)


def a_run(folder, steps=8, **changes):
    config = TrainConfig("bars", steps=steps, warmup=3, seed=5, classes=NAMES, flip=False, **changes)
    return state.new_run(ClassifierRun, folder, config, NETWORK)


def halves(n, seed=0):
    """Noisy images, brighter in the lower or in the right half."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 120, (n, 8, 8, 1), dtype=np.uint8), rng.integers(0, 2, n)
    for image, right in zip(images, labels, strict=True):
        (image[:, 4:] if right else image[4:])[:] += 120
    return from_arrays("halves", images, labels, NAMES)


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
    """Of held-out images over 95 % with little noise, about half of pure noise."""
    train, test = halves(200), halves(200, seed=1)
    go_on(a_run(tmp_path, 30, batch_size=32, lr=3e-3, ema=0.8, backend="numpy"), 30, dataset=train)
    classifier, rng = load_classifier(tmp_path, "numpy"), np.random.default_rng(0)
    assert not any(p.requires_grad for p in classifier.parameters())
    x0 = to_float(test.take(np.arange(200)))
    for t, low, high in ((50, 0.95, 1.0), (999, 0.35, 0.65)):
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
    noises(Path("images"))
    code, _, err = run("train-classifier", "images", "--out", "clf", "--steps", 1, *QUICK)
    assert code == 2 and "images: has a single class, and a classifier needs two" in err and err.count("\n") == 1
    assert not Path("clf").exists()


@pytest.mark.parametrize("damage", [{"classes": ["a", "b", "c"]}, {"in_channels": 3}, {"classes": ["a"]}])
def test_a_damaged_configuration(tmp_path, damage):
    a_run(tmp_path, backend="numpy")
    path = tmp_path / "classifier" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(MinidiffError, match=r"classifier/"):
        load_classifier(tmp_path, "numpy")
