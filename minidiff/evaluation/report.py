"""The report on evaluated images: the metrics of samples, beside the same metrics of real images.

Real images come in three parts. The feature classifier is trained on `train`, where nearest neighbours are looked up
too. `reference` is what samples are compared with; `baseline` holds other real images, compared with it the same way.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minidiff import machine, ranks
from minidiff.data import check_images, is_image_folder, open_dataset
from minidiff.data.dataset import Dataset, blocks, slices, subset
from minidiff.data.imaging import save_each, save_image, sheet, to_float
from minidiff.diffusion.bound import bits_per_dim
from minidiff.diffusion.reverse import no_model
from minidiff.errors import MinidiffError, NoSplit
from minidiff.evaluation import metrics
from minidiff.evaluation.feature_classifier import Classified, FeatureClassifier, open_classifier
from minidiff.evaluation.samples import MIN_IMAGES, EvaluatedImages
from minidiff.files import write_json
from minidiff.progress import progress
from minidiff.sampling.inputs import BATCH_SIZE
from minidiff.sampling.outputs import write_npz
from minidiff.training.start import open_data

PAIRS = 32  # on the sheet of nearest neighbours
BOUND_IMAGES = 128  # images whose bits per dimension are computed
BOUND_TIMESTEPS = 20  # timesteps at which the model is evaluated for each of them


@dataclass(frozen=True)
class RealImages:
    """A dataset in its parts; the classifier is tested on `test`; descriptions of reference and baseline."""

    train: Dataset
    test: Dataset
    reference: Dataset
    baseline: Dataset
    descriptions: tuple[str, str]


def open_real_images(data: str, shape: tuple[int, int, int], n: int, skip_bad: bool = False) -> RealImages:
    """The parts of a dataset of images of that shape (H, W, C). The baseline has up to n images; the rest ignores n.

    A test split is split at random into reference and baseline, so that no model was trained on either. Without one,
    every tenth image is the baseline and not in `train`, and the others are both `train` and reference. skip_bad leaves
    out unreadable files of a folder. Raises MinidiffError for images of another shape, and for too few.
    """
    train, test, has_split = open_split(data, shape[0] if shape[0] == shape[1] else None, skip_bad)
    if train.shape != shape:
        raise MinidiffError(f"{data}: its images are {train.shape}, the evaluated ones {shape}; give their dataset")
    if has_split:
        order = np.random.default_rng(0).permutation(len(test))
        reference, others = subset(test, order[::2]), subset(test, order[1::2])
        descriptions = "half of the test split", "the other half"
        few, least = f"{len(test)} test images", 2 * MIN_IMAGES
    else:
        reference, others = train, test
        descriptions = "nine of ten images", "every tenth"
        few, least = f"{len(train) + len(test)} images", 10 * MIN_IMAGES
    if len(others) < MIN_IMAGES:
        raise MinidiffError(f"{data}: its {few} are too few for reference and baseline; give at least {least}")
    baseline = subset(others, np.random.default_rng(0).permutation(len(others))[:n])
    return RealImages(train, test, reference, baseline, descriptions)


def open_split(data: str, size: int | None, skip_bad: bool) -> tuple[Dataset, Dataset, bool]:
    """Training and test images of a dataset, and whether it has a test split; if not, every tenth is a test image."""
    check_images(data)
    whole = open_data(data, size, skip_bad)
    try:
        return whole, open_dataset(data, size, "test"), True
    except NoSplit:
        tenth = np.arange(len(whole)) % 10 == 9
        return subset(whole, np.flatnonzero(~tenth)), subset(whole, np.flatnonzero(tenth)), False


def classifier_for(
    real: RealImages, other: str | None, backend: str, samples: int | None, skip_bad: bool
) -> FeatureClassifier | None:
    """The classifier of `open_classifier` for the real images, or for the dataset `other` in their place.

    Raises MinidiffError also if `other` has another number of channels, or too few test images.
    """
    if other is None:
        return open_classifier(real.train, real.test, backend, samples)
    (H, W, C), resizable = real.train.shape, is_image_folder(other)
    train, test, _ = open_split(other, H if resizable and H == W else None, skip_bad)
    if train.shape[2] != C:
        raise MinidiffError(
            f"--classifier {other}: has {train.shape[2]} channels, {real.train.name} {C}; give other data"
        )
    if len(test) < MIN_IMAGES:
        raise MinidiffError(f"--classifier {other}: has {len(test)} images to test with; give at least {MIN_IMAGES}")
    return open_classifier(train, test, backend, samples)


def evaluate(
    subject: EvaluatedImages, real: RealImages, classifier: FeatureClassifier | None, seed: int, threads: int
) -> tuple[dict[str, Any], np.ndarray, Image.Image]:
    """The report as in figures.json, the images (n, H, W, C) uint8, and the sheet of nearest training images.

    Without a classifier only `pixel_figures` and bits per dimension.
    """
    if subject.ticks:
        with progress("sampling", subject.ticks) as tick:
            images = subject.generate(tick)
    else:
        images = subject.generate(lambda: None)
    sides = images, all_images(real.baseline), all_images(real.reference)
    classified = None if classifier is None else [classifier.classify(side) for side in sides]
    bits = None if subject.model is None else bits_per_dimension(subject, real.baseline, seed)
    machine.use_threads(threads, "numpy")  # the rest is NumPy's matrix products
    indices, distances = nearest_training_images(images, real.train)
    _, baseline_distances = nearest_training_images(sides[1], real.train)
    by_class = subject.labels is not None and classifier is not None and classifier.train.classes == real.train.classes

    def figures_of(side: int, distances: np.ndarray, labels: np.ndarray | None) -> dict[str, Any]:
        figures = pixel_figures(sides[side], distances)
        if classified is None:
            return figures
        labels = labels if by_class else None
        return feature_figures(classified[side], classified[2], labels, real.train.classes, seed) | figures

    report = {
        "samples": subject.facts,
        "reference": {"of": real.train.name, "which": real.descriptions[0], "n": len(real.reference)},
        "baseline": {"of": real.train.name, "which": real.descriptions[1], "n": len(real.baseline)},
        "classifier": classifier and classifier.facts,
        "figures": {
            "samples": figures_of(0, distances, subject.labels),
            "baseline": figures_of(1, baseline_distances, real.baseline.labels),
        },
        "bits_per_dim": bits,
    }
    return report, images, nearest_sheet(images, indices, distances, real.train)


def pixel_figures(images: np.ndarray, distances: np.ndarray) -> dict[str, Any]:
    """The figures of images (n, H, W, C) uint8 that need no classifier, by their keys in figures.json.

    nearest     the median of `distances` (n,), of each image to its nearest training image
    colour      the mean of every channel, 0 to 1
    """
    return {"nearest": float(np.median(distances)), "colour": (images.mean((0, 1, 2)) / 255).tolist()}


def feature_figures(
    classified: Classified, reference: Classified, labels: np.ndarray | None, classes: tuple[str, ...], seed: int
) -> dict[str, Any]:
    """The figures of images against the reference that need a classifier, by their keys in figures.json.

    frechet, kid, precision, recall   of features (metrics.py) that are standardised by the reference's mean and
                                      standard deviation; of kid the mean and standard deviation over subsets
    agreement   class agreement: the fraction of each class that is classified as its label, with labels (n,) only
    """
    f, g = standardised(classified, reference)
    rng, smaller = np.random.default_rng(seed), min(len(f), len(g))
    kid = metrics.kid(f, g, rng)
    # equally many of both: the more images a set has, the more of the feature space its neighbourhoods cover
    real, generated = (a[rng.permutation(len(a))[:smaller]] for a in (g, f))
    precision, recall = metrics.precision_recall(real, generated)
    figures = {
        "frechet": metrics.frechet_distance_of(f, g),
        "kid": list(kid),
        "precision": precision,
        "recall": recall,
    }
    if labels is not None:
        correct = classified.predictions == labels
        figures["agreement"] = {
            name: float(correct[labels == k].mean()) for k, name in enumerate(classes) if (labels == k).any()
        }
    return figures


def standardised(classified: Classified, reference: Classified) -> tuple[np.ndarray, np.ndarray]:
    """The features of both, (n, D) each, standardised by the reference's mean and standard deviation."""
    mean, deviation = reference.features.mean(0), reference.features.std(0)
    f, g = ((a.features - mean) / np.maximum(deviation, 1e-6) for a in (classified, reference))
    return f, g


def nearest_training_images(images: np.ndarray, train: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """For each image (n, H, W, C) uint8 the index of the nearest training image, and its distance: (n,) each.

    The distance is the root-mean-square difference over pixels and channels, 0 to 1. If training mirrors images, the
    nearest one may be mirrored.
    """

    def flat(a: np.ndarray) -> np.ndarray:
        return a.reshape(len(a), -1).astype(np.float32) / 255  # (n, H W C)

    versions = [images, images[:, :, ::-1]] if train.mirrors else [images]
    indices, distances = metrics.nearest(flat(np.concatenate(versions)), map(flat, blocks(train)))
    indices, distances = indices.reshape(len(versions), -1), distances.reshape(len(versions), -1)  # (versions, n)
    closest, n = distances.argmin(0), np.arange(len(images))
    return indices[closest, n], distances[closest, n]


def bits_per_dimension(subject: EvaluatedImages, dataset: Dataset, seed: int) -> dict[str, float]:
    """Bits per dimension of the first BOUND_IMAGES images under the subject's model: mean, standard error, n.

    Each rank computes whole batches; the noise of those of other ranks before is drawn.
    """
    model, schedule = subject.model, subject.schedule
    assert model is not None and schedule is not None
    n, rng = min(BOUND_IMAGES, len(dataset)), np.random.default_rng(seed)

    parts = [np.arange(n)[part] for part in slices(n, BATCH_SIZE)]
    own = ranks.share(len(parts))
    with progress("bits per dimension", (own.stop - own.start) * (BOUND_TIMESTEPS + 1)) as tick:

        def counted(x_t: np.ndarray, t: np.ndarray, **extras: Any) -> Any:
            tick()
            return model(x_t, t, **extras)

        totals = [np.empty(0)]
        for i, part in enumerate(parts[: own.stop]):
            labels = None if subject.labels is None else dataset.labels[part]
            bound = bits_per_dim(
                counted if i >= own.start else no_model, schedule, to_float(dataset.take(part)), rng, labels,
                BOUND_TIMESTEPS, sampler=subject.bound,
            )  # fmt: skip
            if i >= own.start:
                totals.append(bound.total)
    total = ranks.concatenate(np.concatenate(totals))  # (n,)
    return {"mean": float(total.mean()), "error": float(total.std(ddof=1) / n**0.5), "n": n}


def all_images(dataset: Dataset) -> np.ndarray:
    """All images of a dataset, (n, H, W, C) uint8."""
    return np.concatenate(list(blocks(dataset)))


def nearest_sheet(images: np.ndarray, indices: np.ndarray, distances: np.ndarray, train: Dataset) -> Image.Image:
    """A sheet of the PAIRS images with the least distance to a training image, each with that one to its right."""
    first = distances.argsort(kind="stable")[:PAIRS]
    pairs = np.stack([images[first], train.take(indices[first])], axis=1)  # (PAIRS, 2, H, W, C)
    return sheet(pairs.reshape(-1, *images.shape[1:]), columns=8)


def export_images(folder: Path, name: str, images: np.ndarray) -> None:
    """Write images (n, H, W, C) uint8 for tools that compute the FID: a folder of PNG files, and an archive.

    clean-fid reads NAME/00000.png, ...; guided-diffusion's evaluator reads NAME.npz, arr_0 of uint8 (n, H, W, 3).
    Both need RGB: greyscale is repeated three times.
    """
    rgb = images.repeat(3 // images.shape[3], axis=3)  # (n, H, W, 3)
    write_npz(folder / f"{name}.npz", rgb)
    (folder / name).mkdir()
    save_each(rgb, folder / name)


def write_report(
    folder: Path, report: dict[str, Any], images: np.ndarray, real: RealImages, nearest: Image.Image
) -> None:
    """Write figures.json, neighbours.png (the sheet `nearest`), and samples and reference for other tools."""
    write_json(folder / "figures.json", report)
    save_image(nearest, folder / "neighbours.png")
    export_images(folder, "samples", images)
    export_images(folder, "reference", all_images(real.reference))
