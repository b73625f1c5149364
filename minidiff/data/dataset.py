"""What every reader returns: images or points by index, with their labels and captions."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minidiff.errors import MinidiffError

Progress = Callable[[int, int], object]  # bytes done and in total
Skip = Callable[[MinidiffError], object]
Notice = Callable[[str], object]


@dataclass(frozen=True)
class Dataset:
    """A dataset of labelled images of one size, or of points (points.py), which are images of one pixel.

    name      its name in titles
    take      indices (n,) int -> images (n, H, W, C) uint8, C is 1 or 3; or points (n, 1, 1, D) float32
    labels    (N,) int64, an index into `classes`
    classes   the names of the classes
    shape     (H, W, C) of one image
    mirrors   whether random horizontal flips are a valid augmentation; not so for letters and captioned images
    captions  (N,) strings; () if the dataset has none
    """

    name: str
    take: Callable[[np.ndarray], np.ndarray]
    labels: np.ndarray
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mirrors: bool = True
    captions: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


def from_arrays(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    mirrors: bool = True,
    captions: tuple[str, ...] = (),
) -> Dataset:
    """A Dataset over images, or points, that are already in memory: images (N, H, W, C), labels (N,)."""
    return Dataset(name, images.__getitem__, labels.astype(np.int64), classes, images.shape[1:], mirrors, captions)


def subset(dataset: Dataset, index: np.ndarray) -> Dataset:
    """The images at these indices (n,), in that order, with their labels and captions."""
    captions = tuple(dataset.captions[i] for i in index) if dataset.captions else ()
    return replace(dataset, take=lambda i: dataset.take(index[i]), labels=dataset.labels[index], captions=captions)


def slices(n: int, size: int) -> Iterator[slice]:
    """Slices that cut 0 ... n - 1 into parts of `size`; the last may be shorter."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def blocks(dataset: Dataset, size: int = 1024) -> Iterator[np.ndarray]:
    """All images in order, in blocks of (size, H, W, C) uint8; the last block may be shorter."""
    for part in slices(len(dataset), size):
        yield dataset.take(np.arange(part.start, part.stop))


def update_digest(digest: Any, dataset: Dataset, tick: Callable[[], object], size: int = 1024) -> None:
    """Update a hashlib digest with all labels and images; calls tick() after each block of `size` images."""
    digest.update(dataset.labels.tobytes())
    for images in blocks(dataset, size):
        digest.update(np.ascontiguousarray(images))
        tick()


def fingerprint(dataset: Dataset) -> str:
    """16 hexadecimal digits of the SHA-256 of a dataset's images, labels and captions; its path does not count.

    Nor do the names of the classes: a folder of one class is named after the folder.
    """
    digest = hashlib.sha256(repr((dataset.shape, dataset.captions)).encode())
    update_digest(digest, dataset, lambda: None, size=64)  # small blocks: the images may be large
    return digest.hexdigest()[:16]
