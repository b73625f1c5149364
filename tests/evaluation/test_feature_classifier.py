"""The feature classifier: training, and the cache, keyed by its training images."""

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
    monkeypatch.setattr(feature_classifier, "MIN_STEPS", 40)
    monkeypatch.setattr(feature_classifier, "MAX_STEPS", 40)
    monkeypatch.setattr(feature_classifier, "BATCH_SIZE", 16)
    monkeypatch.setattr(feature_classifier, "user_cache_dir", lambda: tmp_path / "cache")


@pytest.fixture(scope="module")
def trained():
    """A trained feature classifier."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {"MIN_STEPS": 40, "MAX_STEPS": 40, "BATCH_SIZE": 16}.items():
            patched.setattr(feature_classifier, name, value)
        return train_classifier(TRAIN, TEST, "numpy", lambda: None)


def no_progress():
    """A tick that does no_progress."""


def test_training_classifies_the_test_images(trained):
    assert trained.accuracy > 0.9 and trained.tested == 100
    again = train_classifier(TRAIN, replace(TEST, labels=1 - TEST.labels), "numpy", no_progress)
    assert again.accuracy == pytest.approx(1 - trained.accuracy)
    for name, a in again.classifier.state_dict().items():
        np.testing.assert_array_equal(a, trained.classifier.state_dict()[name])


def test_the_averaged_weights_are_returned(trained, monkeypatch):
    """They differ from those of the last step."""
    last = {}
    step = feature_classifier.AdamW.step

    def recorded(self):
        step(self)
        last["p"] = self.p.copy()

    monkeypatch.setattr(feature_classifier.AdamW, "step", recorded)
    averaged = train_classifier(TRAIN, TEST, "numpy", no_progress).classifier.parameters()
    assert (np.concatenate([p.numpy().ravel() for p in averaged]) != last["p"]).any()


@pytest.mark.parametrize("images, steps", [(100, 500), (6400, 1600), (60_000, 5000)])
def test_number_of_training_steps(monkeypatch, images, steps):
    monkeypatch.undo()
    assert feature_classifier.num_steps(images) == steps


def test_a_tick_for_every_step():
    ticks = []
    train_classifier(TRAIN, TEST, "numpy", lambda: ticks.append(1))
    assert len(ticks) == 40


def test_features_and_predictions(trained):
    images = TEST.take(np.arange(100)).repeat(6, 0)  # more than one batch
    classified = trained.classify(images)
    assert classified.features.shape == (600, 96) and classified.images is images
    np.testing.assert_allclose(classified.features[0], trained.classify(images[:1]).features[0], rtol=1e-5, atol=1e-6)
    assert (classified.predictions == TEST.labels.repeat(6)).mean() == pytest.approx(trained.accuracy)


def test_it_is_cached(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    first = open_classifier(TRAIN, TEST, "numpy")
    assert "Training a classifier of bars, once" in caplog.text
    caplog.clear()
    (path,) = (tmp_path / "cache" / "minidiff" / "classifiers").iterdir()
    assert path == cache_path(TRAIN, TEST, no_progress)
    monkeypatch.setattr(feature_classifier, "train_classifier", None)
    again = open_classifier(TRAIN, TEST, "numpy")
    assert caplog.text == ""
    assert (again.accuracy, again.tested) == (first.accuracy, 100)
    images = TEST.take(np.arange(9))
    np.testing.assert_array_equal(first.classify(images).features, again.classify(images).features)


def test_the_estimated_duration_is_told_before_training(caplog, monkeypatch):
    """As measured: 40 steps of 0.5 s, or of 6 s."""
    caplog.set_level("INFO")
    for seconds, duration in ((0.5, "about 20 s"), (6, "about 4 minutes"), (0.001, "about 1 s")):
        monkeypatch.setattr(feature_classifier, "seconds_per_step", lambda *_, seconds=seconds: seconds)
        monkeypatch.setattr(feature_classifier, "train_classifier", stopped)
        with pytest.raises(KeyboardInterrupt):
            open_classifier(TRAIN, TEST, "numpy")
        assert f"Training a classifier of bars, once: 40 steps, {duration}; cached in" in caplog.messages[-1]


def test_the_duration_of_a_step_is_measured():
    assert 0 < feature_classifier.seconds_per_step(TRAIN, "numpy") < 60


def test_few_samples_train_no_classifier(monkeypatch, trained, tmp_path):
    """But a cached one is used."""
    monkeypatch.setattr(feature_classifier, "train_classifier", None)
    assert open_classifier(TRAIN, TEST, "numpy", 99) is None and not tree(tmp_path)
    single = replace(TRAIN, classes=("bars",), labels=0 * TRAIN.labels)
    assert open_classifier(single, TEST, "numpy", 99) is None
    refused(open_classifier, single, TEST, "numpy", 100, match="has a single class")
    cached(trained)
    found = open_classifier(TRAIN, TEST, "numpy", 16)
    assert found is not None and found.facts == {"of": "bars", "learned_from": 400, "accuracy": 0.5, "tested_on": 100}


def changed(dataset, what):
    images, labels = dataset.take(np.arange(len(dataset))).copy(), dataset.labels.copy()
    if what == "a pixel":
        images[-1, -1, -1, -1] ^= 1
    if what == "a label":
        labels[-1] ^= 1
    return from_arrays("bars", images, labels, ("lying", "other") if what == "a name" else dataset.classes)


def test_another_dataset_has_another_classifier():
    paths = {cache_path(changed(TRAIN, what), TEST, no_progress) for what in (None, "a pixel", "a label", "a name")}
    paths |= {cache_path(TRAIN, changed(TEST, what), no_progress) for what in ("a pixel", "a label")}
    assert len(paths) == 6 and cache_path(TRAIN, TEST, no_progress) in paths


def test_other_training_settings_have_another_classifier(monkeypatch):
    before = cache_path(TRAIN, TEST, no_progress)
    monkeypatch.setattr(feature_classifier, "LR", 1e-3)
    assert cache_path(TRAIN, TEST, no_progress) != before


def stopped(*_):
    raise KeyboardInterrupt


def test_an_interrupted_training_caches_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_classifier, "train_classifier", stopped)
    with pytest.raises(KeyboardInterrupt):
        open_classifier(TRAIN, TEST, "numpy")
    assert not any(tree(tmp_path / "cache" / "minidiff" / "classifiers"))


def cached(trained, metadata=None, **changes):
    path = cache_path(TRAIN, TEST, no_progress)
    path.parent.mkdir(parents=True)
    save_file(
        {**trained.classifier.state_dict(), **changes}, path, {"accuracy": "0.5"} if metadata is None else metadata
    )
    return path


def test_a_damaged_file_is_refused(trained):
    path = cached(trained)
    good = path.read_bytes()
    for content in (b"", good[:-1], good[:100]):
        path.write_bytes(content)
        refused(
            open_classifier, TRAIN, TEST, "numpy", match=f"{path}: is damaged; remove it to train the classifier again"
        )
    path.write_bytes(good)
    assert open_classifier(TRAIN, TEST, "numpy").accuracy == 0.5
    assert load_file(path)


def test_a_file_with_the_keys_of_earlier_versions_is_read(trained):
    """They have `halvings` for `downsamplers`."""
    path = cached(trained)
    old = {name.replace("downsamplers.", "halvings."): a for name, a in load_file(path).items()}
    assert sum(name.startswith("halvings.") for name in old) == 12
    save_file(old, path, {"accuracy": "0.5"})
    weights = open_classifier(TRAIN, TEST, "numpy").classifier.state_dict()
    for name, a in trained.classifier.state_dict().items():
        np.testing.assert_array_equal(weights[name], a)


@pytest.mark.parametrize("metadata", [{}, {"accuracy": "high"}, {"accuracy": "nan"}, {"accuracy": "1.5"}])
def test_an_invalid_accuracy_is_refused(trained, metadata):
    cached(trained, metadata)
    refused(open_classifier, TRAIN, TEST, "numpy", match="is damaged")


def test_weights_of_another_network_are_refused(trained):
    cached(trained, **{"out.bias": np.zeros(3, np.float32)})
    refused(open_classifier, TRAIN, TEST, "numpy", match="is damaged")


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_classifier, "train_classifier", None)
    (tmp_path / "cache").write_text("a file")
    refused(open_classifier, TRAIN, TEST, "numpy", match="cannot be written; set XDG_CACHE_HOME")
    (tmp_path / "cache").unlink()
    monkeypatch.setattr(feature_classifier.os, "access", lambda *_: False)
    refused(open_classifier, TRAIN, TEST, "numpy", match="cannot be written; set XDG_CACHE_HOME")


def test_a_single_class_is_refused():
    single = replace(TRAIN, classes=("bars",), labels=0 * TRAIN.labels)
    refused(open_classifier, single, TEST, "numpy", match="bars: has a single class, and a classifier needs two")
