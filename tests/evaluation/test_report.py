"""The report: the parts of a dataset, the figures, nearest training images, and the files for other tools."""

import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from small_runs import bars, idx_set, refused

from minidiff.data.dataset import from_arrays
from minidiff.evaluation import report
from minidiff.evaluation.feature_classifier import Classified
from minidiff.evaluation.report import (
    export_images,
    feature_figures,
    nearest_sheet,
    nearest_training_images,
    open_real_images,
    pixel_figures,
)


def all_of(dataset):
    return dataset.take(np.arange(len(dataset)))


def rows(images):
    return {image.tobytes() for image in images}


def test_a_dataset_with_a_test_split(tmp_path):
    """The reference is the same half of the test split for every n, the baseline is of the other half."""
    idx_set(idx_set(tmp_path / "data", n=40), n=60, prefix="t10k")
    data = str(tmp_path / "data")
    real, more = open_real_images(data, (4, 4, 1), 20), open_real_images(data, (4, 4, 1), 1000)
    assert [len(part) for part in (real.train, real.test, real.reference, real.baseline)] == [40, 60, 30, 20]
    assert len(more.baseline) == 30
    np.testing.assert_array_equal(all_of(more.reference), all_of(real.reference))
    np.testing.assert_array_equal(more.baseline.labels[:20], real.baseline.labels)
    halves = [rows(all_of(part)) for part in (more.reference, more.baseline)]
    assert not halves[0] & halves[1] and halves[0] | halves[1] == rows(all_of(real.test))
    assert real.descriptions == ("half of the test split", "the other half")


def test_a_dataset_without_a_test_split(tmp_path):
    """Every tenth image is the baseline, in neither `train` nor the reference."""
    real = open_real_images(str(idx_set(tmp_path / "data", n=165)), (4, 4, 1), 1000)
    assert [len(part) for part in (real.train, real.test, real.reference, real.baseline)] == [149, 16, 149, 16]
    assert not rows(all_of(real.train)) & rows(all_of(real.test))
    assert rows(all_of(real.test)) == rows(all_of(real.baseline))
    few = str(idx_set(tmp_path / "few", n=150))
    refused(open_real_images, few, (4, 4, 1), 9, match="few: its 150 images are too few .*; give at least 160")


def test_labels_go_with_their_images(tmp_path):
    idx_set(idx_set(tmp_path / "data", n=40), n=60, prefix="t10k")
    real = open_real_images(str(tmp_path / "data"), (4, 4, 1), 30)
    label = dict(zip((image.tobytes() for image in all_of(real.test)), real.test.labels, strict=True))
    for part in (real.reference, real.baseline):
        assert [label[image.tobytes()] for image in all_of(part)] == part.labels.tolist()


def test_images_of_another_shape(tmp_path):
    data = str(idx_set(tmp_path / "data", n=200))
    refused(open_real_images, data, (8, 8, 1), 20, match="data: its images are 4x4, not of size 8")
    refused(
        open_real_images,
        data,
        (4, 4, 3),
        20,
        match=r"its images are \(4, 4, 1\), the evaluated ones \(4, 4, 3\)",
    )
    refused(open_real_images, data, (4, 8, 1), 20, match=r"its images are \(4, 4, 1\), the evaluated ones \(4, 8, 1\)")


# Figures


def classified(n, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 2, 2, 3), dtype=np.uint8)
    return Classified(images, (rng.standard_normal((n, 6)) + shift).astype(np.float32), rng.integers(0, 3, n))


def test_figures_of_images_against_themselves():
    one = classified(50, 0)
    found = feature_figures(one, one, one.predictions, ("a", "b", "c"), seed=0)
    assert abs(found["frechet"]) < 1e-6
    assert (found["precision"], found["recall"]) == (1, 1)
    assert abs(found["kid"][0]) < 4 * found["kid"][1]
    assert found["agreement"] == {"a": 1, "b": 1, "c": 1}


def test_figures_that_need_no_classifier():
    images = classified(50, 0).images
    found = pixel_figures(images, np.arange(51.0))
    assert list(found) == ["nearest", "colour"] and found["nearest"] == 25
    np.testing.assert_allclose(found["colour"], images.reshape(-1, 3).mean(0) / 255)


def test_figures_of_distant_distributions():
    """A shift by 3 standard deviations in six features is a Fréchet distance of 54, up to sampling error.

    Features are standardised, so their scales do not matter.
    """
    one, other = classified(400, 0, shift=3), classified(300, 1)
    scales = np.float32([1, 10, 0.1, 1, 5, 1])
    one, other = (a._replace(features=a.features * scales + 7) for a in (one, other))
    found = feature_figures(one, other, None, (), seed=0)
    assert found["frechet"] == pytest.approx(54, rel=0.1)
    assert found["precision"] < 0.1 and found["recall"] < 0.1
    assert found["kid"][0] > 10 * found["kid"][1]
    assert "agreement" not in found


def test_precision_and_recall_use_equally_many_images():
    """The manifold of a much larger reference would cover everything."""
    one, many = classified(30, 0), classified(3000, 1)
    few = feature_figures(one, many, None, (), seed=0)
    assert few["recall"] > 0.4  # of 30 images of the reference, chosen at random


def test_subsets_are_random():
    """Of images in the order of their classes, both classes are in the subset."""
    one, many = classified(40, 0), classified(200, 1)
    many.features[100:] += 50
    one.features[20:] += 50
    found = feature_figures(one, many, None, (), seed=0)
    assert found["precision"] > 0.6 and found["recall"] > 0.6
    found = feature_figures(many, one, None, (), seed=0)
    assert found["precision"] > 0.6 and found["recall"] > 0.6


def test_agreement_is_by_class():
    one = Classified(
        np.zeros((20, 1, 1, 1), np.uint8), np.random.default_rng(0).standard_normal((20, 2)), np.arange(20) % 2
    )
    labels = np.array([0] * 4 + [2] * 16)
    found = feature_figures(one, one, labels, ("a", "b", "c"), seed=0)
    assert found["agreement"] == {"a": 0.5, "c": 0}


# Nearest training images


def test_nearest_training_images():
    """A copy, a copy with one value off by 51 of 255, and, if training mirrors images, a mirror image."""
    train = replace(bars(30, channels=3), mirrors=False)
    images = train.take(np.array([4, 9, 20]))
    images[1, 0, 0, 0] += 51
    images[2] = images[2, :, ::-1]
    found, distance = nearest_training_images(images, train)
    assert found[:2].tolist() == [4, 9] and distance[0] == 0 and distance[2] > 0.05
    assert distance[1] == pytest.approx(0.2 / np.sqrt(8 * 8 * 3), rel=1e-5)
    found, distance = nearest_training_images(images, replace(train, mirrors=True))
    assert found.tolist() == [4, 9, 20] and distance[2] == 0


def test_the_sheet_of_nearest_images(monkeypatch):
    """Pairs, the closest first, four in a row: of 4x4 pixels, 24 times enlarged, with gaps of 4."""
    monkeypatch.setattr(report, "PAIRS", 5)
    train = from_arrays("grey", np.full((7, 4, 4, 1), 200, np.uint8), np.zeros(7, int), ("grey",))
    images = np.arange(10, 18, dtype=np.uint8).reshape(8, 1, 1, 1).repeat(4, 1).repeat(4, 2)
    distances = np.array([5.0, 1, 4, 8, 2, 7, 3, 6])
    pixels = np.asarray(nearest_sheet(images, np.arange(8) % 7, distances, train))
    assert pixels.shape == (2 * 100 + 4, 8 * 100 + 4, 3)
    assert pixels[50, 50::100, 0].tolist() == [11, 200, 14, 200, 16, 200, 12, 200]
    assert pixels[150, 50:250:100, 0].tolist() == [10, 200]


# Files for other tools


@pytest.mark.parametrize("channels", [1, 3])
def test_images_as_the_evaluators_read_them(tmp_path, channels):
    """guided-diffusion's reads arr_0.npy out of the zip, by a header of version 1.0; clean-fid takes all PNG files."""
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 5, channels), dtype=np.uint8)
    export_images(tmp_path, "samples", images)
    rgb = images.repeat(3 // channels, axis=3)
    with zipfile.ZipFile(tmp_path / "samples.npz") as archive, archive.open("arr_0.npy") as file:
        assert archive.namelist() == ["arr_0.npy"]
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file) == ((12, 4, 5, 3), False, np.uint8)
        np.testing.assert_array_equal(np.frombuffer(file.read(), np.uint8).reshape(rgb.shape), rgb)
    files = sorted((tmp_path / "samples").glob("**/*.png"))
    assert [file.name for file in files] == [f"{i:05d}.png" for i in range(12)]
    for file, pixels in zip(files, rgb, strict=True):
        with Image.open(file) as image:
            assert image.mode == "RGB"
            np.testing.assert_array_equal(np.array(image), pixels)
