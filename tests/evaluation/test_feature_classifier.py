"""The judge: it learns, is kept, and is known again by the pictures it learned from."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_runs import bars, refused, tree

from minidiff.data.dataset import from_arrays
from minidiff.evaluation import feature_classifier
from minidiff.evaluation.feature_classifier import cache_path, open_classifier, train_classifier

TRAIN, TEST = bars(400), bars(100, seed=1)


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(feature_classifier, "FEWEST", 40)
    monkeypatch.setattr(feature_classifier, "MOST", 40)
    monkeypatch.setattr(feature_classifier, "BATCH", 16)
    monkeypatch.setattr(feature_classifier, "user_cache_dir", lambda: tmp_path / "cache")


@pytest.fixture(scope="module")
def weights():
    """Of a judge that did learn."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {"FEWEST": 40, "MOST": 40, "BATCH": 16}.items():
            patched.setattr(feature_classifier, name, value)
        return train_classifier(TRAIN, TEST, "numpy", lambda: None)


def nothing():
    """No progress to show."""


def test_it_learns(weights):
    assert weights.accuracy > 0.9 and weights.tested == 100
    again = train_classifier(TRAIN, replace(TEST, labels=1 - TEST.labels), "numpy", nothing)
    assert again.accuracy == pytest.approx(1 - weights.accuracy)
    for name, a in again.classifier.state_dict().items():
        np.testing.assert_array_equal(a, weights.classifier.state_dict()[name])


def test_it_is_the_average_that_is_kept(weights, monkeypatch):
    """The last step's weights are others."""
    last = {}
    step = feature_classifier.AdamW.step

    def watched(self):
        step(self)
        last["p"] = self.p.copy()

    monkeypatch.setattr(feature_classifier.AdamW, "step", watched)
    kept = train_classifier(TRAIN, TEST, "numpy", nothing).classifier.parameters()
    assert (np.concatenate([p.numpy().ravel() for p in kept]) != last["p"]).any()


@pytest.mark.parametrize("pictures, steps", [(100, 500), (6400, 1600), (60_000, 5000)])
def test_how_long_it_learns(monkeypatch, pictures, steps):
    monkeypatch.undo()
    assert feature_classifier.num_steps(pictures) == steps


def test_a_tick_for_every_step():
    ticks = []
    train_classifier(TRAIN, TEST, "numpy", lambda: ticks.append(1))
    assert len(ticks) == 40


def test_what_it_sees(weights):
    images = TEST.take(np.arange(100)).repeat(6, 0)  # more than one batch
    seen = weights.classify(images)
    assert seen.features.shape == (600, 96) and seen.images is images
    np.testing.assert_allclose(seen.features[0], weights.classify(images[:1]).features[0], rtol=1e-5, atol=1e-6)
    assert (seen.called == TEST.labels.repeat(6)).mean() == pytest.approx(weights.accuracy)


def test_it_is_kept(tmp_path, capsys, monkeypatch):
    first = open_classifier(TRAIN, TEST, "numpy")
    assert "Training a classifier of bars, once" in capsys.readouterr().out
    (path,) = (tmp_path / "cache" / "minidiff" / "classifiers").iterdir()
    assert path == cache_path(TRAIN, TEST, nothing)
    monkeypatch.setattr(feature_classifier, "train_classifier", None)
    again = open_classifier(TRAIN, TEST, "numpy")
    assert "Training" not in capsys.readouterr().out
    assert (again.accuracy, again.tested) == (first.accuracy, 100)
    images = TEST.take(np.arange(9))
    np.testing.assert_array_equal(first.classify(images).features, again.classify(images).features)


def test_how_long_it_takes_is_said_before(capsys, monkeypatch):
    """As measured: 40 steps of 0.5 s, or of 6 s."""
    for seconds, how_long in ((0.5, "about 20 s"), (6, "about 4 minutes"), (0.001, "about 1 s")):
        monkeypatch.setattr(feature_classifier, "seconds_per_step", lambda *_, seconds=seconds: seconds)
        monkeypatch.setattr(feature_classifier, "train_classifier", stopped)
        with pytest.raises(KeyboardInterrupt):
            open_classifier(TRAIN, TEST, "numpy")
        assert f"Training a classifier of bars, once: 40 steps, {how_long}; it is kept in" in capsys.readouterr().out


def test_the_time_of_a_step_is_measured():
    assert 0 < feature_classifier.seconds_per_step(TRAIN, "numpy") < 60


def test_few_samples_train_none(monkeypatch, weights, tmp_path):
    """But use one that is kept."""
    monkeypatch.setattr(feature_classifier, "train_classifier", None)
    assert open_classifier(TRAIN, TEST, "numpy", 99) is None and not tree(tmp_path)
    single = replace(TRAIN, classes=("bars",), labels=0 * TRAIN.labels)
    assert open_classifier(single, TEST, "numpy", 99) is None
    refused(open_classifier, single, TEST, "numpy", 100, match="has a single class")
    kept(weights)
    found = open_classifier(TRAIN, TEST, "numpy", 16)
    assert found is not None and found.facts == {"of": "bars", "learned_from": 400, "accuracy": 0.5, "tested_on": 100}


def changed(dataset, what):
    images, labels = dataset.take(np.arange(len(dataset))).copy(), dataset.labels.copy()
    if what == "a pixel":
        images[-1, -1, -1, -1] ^= 1
    if what == "a label":
        labels[-1] ^= 1
    return from_arrays("bars", images, labels, ("lying", "other") if what == "a name" else dataset.classes)


def test_another_set_has_another_judge():
    places = {cache_path(changed(TRAIN, what), TEST, nothing) for what in (None, "a pixel", "a label", "a name")}
    places |= {cache_path(TRAIN, changed(TEST, what), nothing) for what in ("a pixel", "a label")}
    assert len(places) == 6 and cache_path(TRAIN, TEST, nothing) in places


def test_choices_of_another_time_have_another_judge(monkeypatch):
    before = cache_path(TRAIN, TEST, nothing)
    monkeypatch.setattr(feature_classifier, "LR", 1e-3)
    assert cache_path(TRAIN, TEST, nothing) != before


def stopped(*_):
    raise KeyboardInterrupt


def test_stopped_while_it_learns_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_classifier, "train_classifier", stopped)
    with pytest.raises(KeyboardInterrupt):
        open_classifier(TRAIN, TEST, "numpy")
    assert not any(tree(tmp_path / "cache" / "minidiff" / "classifiers"))


def kept(weights, metadata=None, **changes):
    path = cache_path(TRAIN, TEST, nothing)
    path.parent.mkdir(parents=True)
    save_file(
        {**weights.classifier.state_dict(), **changes}, path, {"accuracy": "0.5"} if metadata is None else metadata
    )
    return path


def test_a_damaged_judge_is_refused(weights):
    path = kept(weights)
    good = path.read_bytes()
    for content in (b"", good[:-1], good[:100]):
        path.write_bytes(content)
        refused(open_classifier, TRAIN, TEST, "numpy", match=f"{path}: is damaged; remove it, and it is trained again")
    path.write_bytes(good)
    assert open_classifier(TRAIN, TEST, "numpy").accuracy == 0.5
    assert load_file(path)


@pytest.mark.parametrize("metadata", [{}, {"accuracy": "much"}, {"accuracy": "nan"}, {"accuracy": "1.5"}])
def test_an_accuracy_that_is_none_is_refused(weights, metadata):
    kept(weights, metadata)
    refused(open_classifier, TRAIN, TEST, "numpy", match="is damaged")


def test_weights_of_another_network_are_refused(weights):
    kept(weights, **{"out.bias": np.zeros(3, np.float32)})
    refused(open_classifier, TRAIN, TEST, "numpy", match="is damaged")


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_classifier, "train_classifier", None)
    (tmp_path / "cache").write_text("a file")
    refused(open_classifier, TRAIN, TEST, "numpy", match="cannot be written; set XDG_CACHE_HOME")
    (tmp_path / "cache").unlink()
    monkeypatch.setattr(feature_classifier.os, "access", lambda *_: False)
    refused(open_classifier, TRAIN, TEST, "numpy", match="cannot be written; set XDG_CACHE_HOME")


def test_a_single_class_cannot_be_told_apart():
    single = replace(TRAIN, classes=("bars",), labels=0 * TRAIN.labels)
    refused(open_classifier, single, TEST, "numpy", match="bars: has a single class, and a classifier needs two")
