"""What drawn pictures are worth: figures of them beside the same figures of real ones.

Real pictures come in three parts. The classifier learns from `train`, where nearest neighbours are looked for too.
`reference` is what drawn pictures are compared with, and `baseline` other real ones that are compared in the same way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minidiff import machine
from minidiff.data import is_image_folder, open_dataset
from minidiff.data.dataset import Dataset, blocks, subset
from minidiff.data.imaging import save_each, save_image, sheet, to_float
from minidiff.diffusion.bound import bits_per_dim
from minidiff.errors import MinidiffError, NoSplit
from minidiff.evaluation import metrics
from minidiff.evaluation.feature_classifier import Classified, FeatureClassifier, open_classifier
from minidiff.evaluation.samples import MIN_IMAGES, EvaluatedImages
from minidiff.files import write_json
from minidiff.sampling.setup import BATCH, write_npz
from minidiff.terminal import with_progress_bar
from minidiff.training.start import open_data

PAIRS = 32  # on the sheet of neighbours
BITS, EVALUATIONS = 128, 20  # pictures whose bits are counted, and at how many steps of the walk each


@dataclass(frozen=True)
class RealImages:
    """A set in its parts; `test` is what the classifier is tested with, `called` what reference and baseline are."""

    train: Dataset
    test: Dataset
    reference: Dataset
    baseline: Dataset
    called: tuple[str, str]


def open_real_images(data: str, shape: tuple[int, int, int], n: int, skip_bad: bool = False) -> RealImages:
    """A set of pictures of that shape in its parts. Only the baseline depends on n: it has that many, if there are.

    With a test split, its halves are reference and baseline, and no model has seen either. Without one, every tenth
    picture is left out of `train` and for the baseline, and the rest is the reference too. skip_bad leaves out what
    cannot be read of a folder.
    Raises MinidiffError for pictures of another shape, and for too few.
    """
    train, test, has_split = split(data, shape[0] if shape[0] == shape[1] else None, skip_bad)
    if train.shape != shape:
        raise MinidiffError(f"{data}: its pictures are {train.shape}, and {shape} are to be evaluated; give their set")
    if has_split:
        order = np.random.default_rng(0).permutation(len(test))
        reference, others = subset(test, order[::2]), subset(test, order[1::2])
        called = "half of the test split", "the other half"
        few, least = f"{len(test)} test pictures", 2 * MIN_IMAGES
    else:
        reference, others = train, test
        called = "nine of ten pictures", "the tenth"
        few, least = f"{len(train) + len(test)} pictures", 10 * MIN_IMAGES
    if len(others) < MIN_IMAGES:
        raise MinidiffError(f"{data}: its {few} are too few to compare with a part of them; {least} are the least")
    baseline = subset(others, np.random.default_rng(0).permutation(len(others))[:n])
    return RealImages(train, test, reference, baseline, called)


def split(data: str, size: int | None, skip_bad: bool) -> tuple[Dataset, Dataset, bool]:
    """Training and test images of a set, and whether the set has a test split: without one, every tenth is a test."""
    whole = open_data(data, size, skip_bad)
    try:
        return whole, open_dataset(data, size, "test"), True
    except NoSplit:
        tenth = np.arange(len(whole)) % 10 == 9
        return subset(whole, np.flatnonzero(~tenth)), subset(whole, np.flatnonzero(tenth)), False


def judge_for(
    real: RealImages, other: str | None, backend: str, samples: int | None, skip_bad: bool
) -> FeatureClassifier | None:
    """What `judge_of` gives for the real images, or for other data that is to be learned from in their place.

    Raises MinidiffError also for other data of another number of channels, and for too few.
    """
    if other is None:
        return open_classifier(real.train, real.test, backend, samples)
    (H, W, C), sized = real.train.shape, is_image_folder(other)
    train, test, _ = split(other, H if sized and H == W else None, skip_bad)
    if train.shape[2] != C:
        raise MinidiffError(
            f"--classifier {other}: has {train.shape[2]} channels, {real.train.name} {C}; give other data"
        )
    if len(test) < MIN_IMAGES:
        raise MinidiffError(f"--classifier {other}: has {len(test)} images to test with; {MIN_IMAGES} are the least")
    return open_classifier(train, test, backend, samples)


def evaluate(
    subject: EvaluatedImages, real: RealImages, judge: FeatureClassifier | None, seed: int, threads: int
) -> tuple[dict[str, Any], np.ndarray, Image.Image]:
    """The report, which is what figures.json holds; the pictures; the sheet of those closest to a training picture.

    Without a judge only the figures of `pixel_figures`, and bits.
    """
    images = with_progress_bar("drawing", subject.ticks, subject.draw) if subject.ticks else subject.draw(lambda: None)
    sides = images, all_images(real.baseline), all_images(real.reference)
    seen = None if judge is None else [judge.classify(side) for side in sides]
    bits = None if subject.model is None else bits_per_dimension(subject, real.baseline, seed)
    machine.use_threads(threads, "numpy")  # whose products are all that is left to do
    found, distances = neighbours(images, real.train)
    _, usual = neighbours(sides[1], real.train)
    by_class = subject.labels is not None and judge is not None and judge.train.classes == real.train.classes

    def figures_of(side: int, distances: np.ndarray, labels: np.ndarray | None) -> dict[str, Any]:
        found = pixel_figures(sides[side], distances)
        if seen is None:
            return found
        labels = labels if by_class else None
        return feature_figures(seen[side], seen[2], labels, real.train.classes, seed) | found

    report = {
        "samples": subject.facts,
        "reference": {"of": real.train.name, "which": real.called[0], "n": len(real.reference)},
        "baseline": {"of": real.train.name, "which": real.called[1], "n": len(real.baseline)},
        "classifier": judge and judge.facts,
        "figures": {
            "samples": figures_of(0, distances, subject.labels),
            "baseline": figures_of(1, usual, real.baseline.labels),
        },
        "bits_per_dim": bits,
    }
    return report, images, nearest_sheet(images, found, distances, real.train)


def pixel_figures(images: np.ndarray, distances: np.ndarray) -> dict[str, Any]:
    """The figures of images (n, H, W, C) uint8 that need no classifier, by the names that figures.json gives them.

    nearest     the median of `distances` (n,), of each to the training image that is nearest
    colour      the mean of every channel, 0 to 1
    """
    return {"nearest": float(np.median(distances)), "colour": (images.mean((0, 1, 2)) / 255).tolist()}


def feature_figures(
    seen: Classified, reference: Classified, labels: np.ndarray | None, classes: tuple[str, ...], seed: int
) -> dict[str, Any]:
    """The figures of images against the reference that a classifier sees, by the names that figures.json gives them.

    frechet, kid, precision, recall   of their features (metrics.py), each in units of the reference's deviation; of
                                      kid the mean and the spread over subsets
    agreement   the share of each class that is taken for what it should be, by `labels` (n,), if there are any
    """
    mean, deviation = reference.features.mean(0), reference.features.std(0)
    f, g = ((a.features - mean) / np.maximum(deviation, 1e-6) for a in (seen, reference))
    rng, few = np.random.default_rng(seed), min(len(f), len(g))
    kid = metrics.kid(f, g, rng)
    # of both as many: the more pictures a set has, the more densely it covers what it reaches
    real, drawn = (a[rng.permutation(len(a))[:few]] for a in (g, f))
    precision, recall = metrics.precision_recall(real, drawn)
    found = {
        "frechet": metrics.frechet_distance(*metrics.mean_and_covariance(f), *metrics.mean_and_covariance(g)),
        "kid": list(kid),
        "precision": precision,
        "recall": recall,
    }
    if labels is not None:
        hit = seen.called == labels
        found["agreement"] = {
            name: float(hit[labels == k].mean()) for k, name in enumerate(classes) if (labels == k).any()
        }
    return found


def neighbours(images: np.ndarray, train: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """For every picture (n, H, W, C) uint8 the number of the nearest training picture, and how far it is: (n,) each.

    The distance is the root-mean-square difference of all their numbers, 0 to 1. Mirror images are looked for too where
    training has them.
    """

    def flat(a: np.ndarray) -> np.ndarray:
        return a.reshape(len(a), -1).astype(np.float32) / 255  # (n, H W C)

    ways = [images, images[:, :, ::-1]] if train.mirrors else [images]
    found, distances = metrics.nearest(flat(np.concatenate(ways)), map(flat, blocks(train)))
    found, distances = found.reshape(len(ways), -1), distances.reshape(len(ways), -1)  # (ways, n)
    way, n = distances.argmin(0), np.arange(len(images))
    return found[way, n], distances[way, n]


def bits_per_dimension(subject: EvaluatedImages, dataset: Dataset, seed: int) -> dict[str, float]:
    """Bits per dimension of a set's first BITS pictures under the subject's model: mean, its standard error, n."""
    model, schedule = subject.model, subject.schedule
    assert model is not None and schedule is not None
    n, rng = min(BITS, len(dataset)), np.random.default_rng(seed)

    def count(tick: Callable[[], object]) -> np.ndarray:
        def told(x_t: np.ndarray, t: np.ndarray, **extras: Any) -> Any:
            tick()
            return model(x_t, t, **extras)

        parts = [np.arange(start, min(start + BATCH, n)) for start in range(0, n, BATCH)]
        bounds = [
            bits_per_dim(
                told, schedule, to_float(dataset.take(part)), rng,
                None if subject.labels is None else dataset.labels[part], EVALUATIONS,
            ) for part in parts
        ]  # fmt: skip
        return np.concatenate([bound.total for bound in bounds])  # (n,)

    total = with_progress_bar("counting bits", -(-n // BATCH) * (EVALUATIONS + 1), count)
    return {"mean": float(total.mean()), "error": float(total.std(ddof=1) / n**0.5), "n": n}


def all_images(dataset: Dataset) -> np.ndarray:
    """All of them, (n, H, W, C) uint8."""
    return np.concatenate(list(blocks(dataset)))


def nearest_sheet(images: np.ndarray, found: np.ndarray, distances: np.ndarray, train: Dataset) -> Image.Image:
    """A sheet of the pictures that are nearest to a training picture, each with that one to its right."""
    first = distances.argsort(kind="stable")[:PAIRS]
    pairs = np.stack([images[first], train.take(found[first])], axis=1)  # (PAIRS, 2, H, W, C)
    return sheet(pairs.reshape(-1, *images.shape[1:]), columns=8)


def export(folder: Path, name: str, images: np.ndarray) -> None:
    """Write pictures (n, H, W, C) uint8 for the tools that compute the FID: a folder of PNG files, and an archive.

    NAME/00000.png, ... are what clean-fid reads, and NAME.npz, arr_0 of uint8 (n, H, W, 3), guided-diffusion's
    evaluator. Neither knows grey, which is written as equal red, green and blue.
    """
    rgb = images.repeat(3 // images.shape[3], axis=3)  # (n, H, W, 3)
    write_npz(folder / f"{name}.npz", rgb)
    (folder / name).mkdir()
    save_each(rgb, folder / name)


def write(
    folder: Path, report: dict[str, Any], images: np.ndarray, real: RealImages, sheet_of_closest: Image.Image
) -> None:
    """Fill a folder: figures.json, neighbours.png, and the pictures of both sides for other tools."""
    write_json(folder / "figures.json", report)
    save_image(sheet_of_closest, folder / "neighbours.png")
    export(folder, "samples", images)
    export(folder, "reference", all_images(real.reference))
