"""Images in, pictures out. Every reader returns a `Dataset` of uint8 NHWC pictures with labels, some with captions."""

import os

from minidiff.data import cats_dogs, cifar10, emoji, folder, idx
from minidiff.data.dataset import Dataset
from minidiff.data.folder import Notice, Skip
from minidiff.errors import MinidiffError, NoSplit

__all__ = ["BUILT_IN", "Dataset", "is_image_folder", "open_dataset"]

BUILT_IN = ("cats_dogs", "cifar10", "emoji")
SPLITS = {"train": {}, "test": {"n": 4000, "seed": 1}}  # of cats_dogs: a picture depends on the seed
FORMS = f"a folder of pictures, a folder of IDX files, CIFAR-10's binary version, or {' or '.join(BUILT_IN)}"


def open_dataset(
    data: str,
    size: int | None = None,
    split: str = "train",
    progress: cifar10.Progress | None = None,
    skip: Skip | None = None,
    notice: Notice | None = None,
) -> Dataset:
    """Opens a built-in set by its name, or finds out what lies at a path.

    data      cats_dogs (drawn), cifar10 (downloaded once; `progress(done, total)` is told its bytes), emoji, a
              folder of IDX files, CIFAR-10's binary version (a folder or its .tar.gz), a folder of pictures
    size      the side to which a folder's pictures are cut; of other sets, the side they must have
    split     "train" or "test"; folders of pictures have only the first
    skip      of a folder, leaves pictures out that cannot be read: skip(error) is told of each
    notice    of a folder, notice(text) is told what is passed over, and how much memory a large one needs

    A built-in name wins over a folder of that name, which can be given as ./cifar10. Raises MinidiffError
    for data that is none of these and for all that its reader refuses; NoSplit, which is one, for a split it has not.
    """
    dataset = _open(data, size, split, progress, skip, notice)
    if size is not None and dataset.shape[:2] != (size, size):
        height, width, _ = dataset.shape
        raise MinidiffError(
            f"{data}: its pictures are {width}x{height}, not of size {size}; leave the size out, or choose other data"
        )
    return dataset


def is_image_folder(data: str) -> bool:
    """Whether it is read as one, and not as a set of another form."""
    return data not in BUILT_IN and os.path.isdir(data) and not idx.is_idx(data) and not cifar10.is_cifar10(data)


def _open(
    data: str,
    size: int | None,
    split: str,
    progress: cifar10.Progress | None,
    skip: Skip | None,
    notice: Notice | None,
) -> Dataset:
    """The built-in set of that name, else what lies at that path."""
    if data == "cats_dogs":
        if split not in SPLITS:
            raise _no_split(data, split)
        return cats_dogs.cats_dogs(**SPLITS[split])
    if data == "cifar10":
        archive = cifar10.cache_dir() / cifar10.ARCHIVE
        if not archive.is_file():
            cifar10.download_cifar10(archive.parent, progress)
        return cifar10.cifar10(archive, split)
    if data == "emoji":
        return emoji.emoji(split)
    return _at_path(data, size, split, skip, notice)


def _at_path(path: str, size: int | None, split: str, skip: Skip | None, notice: Notice | None) -> Dataset:
    """The set that lies there: an archive by its name, a folder by what it holds."""
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
    return folder.folder(path, size, skip, notice)


def _no_split(data: str, split: str) -> NoSplit:
    return NoSplit(f"{data}: has no split {split!r}; leave the split out")
