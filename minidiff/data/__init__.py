"""Datasets and image files. Every reader returns a `Dataset`: uint8 NHWC images, or float32 points, with labels."""

import os

from minidiff.data import cifar10, emoji, idx
from minidiff.data.dataset import Dataset, Notice, Progress, Skip
from minidiff.data.points import POINTS, points
from minidiff.errors import MinidiffError, NoSplit

__all__ = ["BUILT_IN", "POINTS", "Dataset", "check_images", "is_image_folder", "open_dataset"]

BUILT_IN = ("cats_dogs", "cifar10", "emoji", *POINTS)
SPLITS: dict[str, dict[str, int]] = {"train": {}, "test": {"n": 4000, "seed": 1}}  # arguments of cats_dogs
FORMS = f"a folder of images, a folder of IDX files, CIFAR-10's binary version, or {' or '.join(BUILT_IN)}"


def open_dataset(
    data: str,
    size: int | None = None,
    split: str = "train",
    progress: Progress | None = None,
    skip: Skip | None = None,
    notice: Notice | None = None,
) -> Dataset:
    """Open a built-in dataset by name, or the dataset at a path, whose format is detected.

    data      cats_dogs (drawn by a program), cifar10 (downloaded once), emoji, one of POINTS, a folder of IDX files,
              CIFAR-10's binary version (a folder or its .tar.gz), or a folder of images
    size      side in pixels to which an image folder is resized and cropped; other datasets must have it already
    split     "train" or "test"; image folders have only "train"
    progress  of a download: progress(bytes done, bytes in total)
    skip      of an image folder: skip(error) for each unreadable image, which is left out; None: the error is raised
    notice    of an image folder: notice(text) for ignored files and for the memory that a large dataset needs

    A built-in name takes precedence over a folder of that name, which can be given as ./cifar10. Raises MinidiffError
    if the data is none of these or cannot be read; NoSplit, a subclass, if the dataset has no such split.
    """
    dataset = _open(data, size, split, progress, skip, notice)
    if size is not None and dataset.shape[:2] != (size, size):
        height, width, _ = dataset.shape
        raise MinidiffError(
            f"{data}: its images are {width}x{height}, not of size {size}; leave the size out, or choose other data"
        )
    return dataset


def is_image_folder(data: str) -> bool:
    """Whether `open_dataset` reads this as a folder of images, and not as a dataset of another format."""
    return data not in BUILT_IN and os.path.isdir(data) and not idx.is_idx(data) and not cifar10.is_cifar10(data)


def check_images(data: str) -> None:
    """Raises MinidiffError for a dataset of points."""
    if data in POINTS:
        raise MinidiffError(f"{data}: holds points, not images; give a dataset of images")


def _open(
    data: str,
    size: int | None,
    split: str,
    progress: Progress | None,
    skip: Skip | None,
    notice: Notice | None,
) -> Dataset:
    """The built-in dataset of that name, else the dataset at that path."""
    if data == "cats_dogs":
        if split not in SPLITS:
            raise _no_split(data, split)
        from minidiff.data.cats_dogs import cats_dogs  # needs Pillow

        return cats_dogs(**SPLITS[split])
    if data == "cifar10":
        archive = cifar10.cache_dir() / cifar10.ARCHIVE
        if not archive.is_file():
            cifar10.download_cifar10(archive.parent, progress)
        return cifar10.cifar10(archive, split)
    if data == "emoji":
        return emoji.emoji(split)
    if data in POINTS:
        return points(data, split)
    return _at_path(data, size, split, skip, notice)


def _at_path(path: str, size: int | None, split: str, skip: Skip | None, notice: Notice | None) -> Dataset:
    """The dataset at a path: an archive is recognised by its suffix, a folder by the files in it."""
    if os.path.isfile(path):
        if path.endswith((".tar.gz", ".tgz")):
            return cifar10.cifar10(path, split)
        raise MinidiffError(f"{path}: is a file, but no .tar.gz; give {FORMS}")
    if not os.path.isdir(path):
        raise MinidiffError(f"{path}: no such folder or file, and no built-in dataset; give {FORMS}")
    if idx.is_idx(path):
        return idx.idx(path, split)
    if cifar10.is_cifar10(path):
        return cifar10.cifar10(path, split)
    if split != "train":
        raise _no_split(path, split)
    from minidiff.data.folder import folder  # needs Pillow

    return folder(path, size, skip, notice)


def _no_split(data: str, split: str) -> NoSplit:
    return NoSplit(f"{data}: has no split {split!r}; leave the split out")
