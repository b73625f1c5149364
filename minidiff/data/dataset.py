"""What every reader returns: pictures by number, labels and captions beside them."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Dataset:
    """A set of labelled pictures of one size.

    name      what to call it in a title
    take      indices (n,) int -> pictures (n, H, W, C) uint8; C is 1 or 3
    labels    (N,) int64, an index into `classes`
    classes   the names of the classes
    shape     (H, W, C) of one picture
    mirrors   whether a picture's mirror image might be in the set too, as of photographs, but not of letters
    captions  what each of the N pictures shows, in words; () of a set that says nothing
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
    """A Dataset over pictures that are already in memory: images (N, H, W, C) uint8, labels (N,)."""
    return Dataset(name, images.__getitem__, labels.astype(np.int64), classes, images.shape[1:], mirrors, captions)


def subset(dataset: Dataset, index: np.ndarray) -> Dataset:
    """The pictures of these numbers (n,) alone, in that order, and with their captions."""
    captions = tuple(dataset.captions[i] for i in index) if dataset.captions else ()
    return replace(dataset, take=lambda i: dataset.take(index[i]), labels=dataset.labels[index], captions=captions)


def blocks(dataset: Dataset, size: int = 1024) -> Iterator[np.ndarray]:
    """All pictures in order, (size, H, W, C) uint8 at a time, the last block shorter."""
    for start in range(0, len(dataset), size):
        yield dataset.take(np.arange(start, min(start + size, len(dataset))))


def update_digest(digest: Any, dataset: Dataset, tick: Callable[[], object], size: int = 1024) -> None:
    """Update a hash of hashlib's by all labels and pictures; tick() after each block of `size`."""
    digest.update(dataset.labels.tobytes())
    for images in blocks(dataset, size):
        digest.update(np.ascontiguousarray(images))
        tick()


def fingerprint(dataset: Dataset) -> str:
    """16 hexadecimal digits that tell sets apart: by pictures, labels and captions, wherever they lie.

    Not by the classes' names: that of a single class is its folder's.
    """
    digest = hashlib.sha256(repr((dataset.shape, dataset.captions)).encode())
    update_digest(digest, dataset, lambda: None, size=64)  # few at a time, for they may be large
    return digest.hexdigest()[:16]
