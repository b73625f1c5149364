"""IDX, the format of MNIST and its relatives (LeCun, Cortes & Burges, 1998), gzipped or not.

    0  0  type  ndim | size_1 ... size_ndim | the items, the last index running fastest

Sizes are big-endian uint32. Only type 0x08, unsigned bytes, is read: images and labels have no
other. Before memory is allocated, the sizes in the header are checked against the length of the file; of a gzip file,
against the most that it can inflate to.
"""

import gzip
import io
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from minidiff.data.dataset import Dataset, from_arrays
from minidiff.errors import MinidiffError, NoSplit

PREFIXES = {"train": "train", "test": "t10k"}
DIGITS = tuple("0123456789")
GARMENTS = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")

MAX_BYTES = 2**31  # about four times the largest IDX dataset's, EMNIST ByClass
CHUNK = 2**20
DEFLATE_RATIO = 1032  # no gzip stream inflates to more than this times its own length


def is_idx(folder: str | Path) -> bool:
    """Whether a folder holds images in IDX, of either split."""
    names = (f"{prefix}-images-idx3-ubyte{suffix}" for prefix in PREFIXES.values() for suffix in ("", ".gz"))
    return any(os.path.isfile(Path(folder) / name) for name in names)


def idx(folder: str | Path, split: str = "train") -> Dataset:
    """Reads {train,t10k}-images-idx3-ubyte and -labels-idx1-ubyte (or their .gz) of a folder, C = 1.

    The labels are 0 ... 9. Their names are Fashion-MNIST's, shortened, if the folder's own name contains "fashion",
    else the digits. Raises MinidiffError for a file that is missing or damaged, and if the two do not match.
    """
    if split not in PREFIXES:
        raise MinidiffError(f"{split}: no such split; take {' or '.join(PREFIXES)}")
    images_path = _find(folder, f"{PREFIXES[split]}-images-idx3-ubyte", NoSplit)
    labels_path = _find(folder, f"{PREFIXES[split]}-labels-idx1-ubyte", MinidiffError)
    images, labels = read_idx(images_path), read_idx(labels_path)  # (N, H, W), (N,)

    if images.ndim != 3:
        raise MinidiffError(f"{images_path}: has {images.ndim} dimensions, not 3 (N, H, W); get the file again")
    if labels.shape != images.shape[:1]:
        raise MinidiffError(
            f"{labels_path}: has shape {labels.shape} but there are {len(images)} images; get both files again"
        )
    if labels.max() >= len(DIGITS):
        raise MinidiffError(f"{labels_path}: holds the label {labels.max()}; only 0 to 9 are known")

    name = os.path.basename(os.path.abspath(folder))
    classes = GARMENTS if "fashion" in name.lower() else DIGITS
    return from_arrays(name, images[..., None], labels, classes, mirrors=False)  # (N, H, W, 1)


def _find(folder: str | Path, name: str, missing: type[MinidiffError]) -> Path:
    """The file of that name, or its gzip. Raises `missing` if there is neither."""
    for path in (Path(folder) / name, Path(folder) / f"{name}.gz"):
        if os.path.isfile(path):
            return path
    raise missing(f"{folder}: holds neither {name} nor {name}.gz; put one there")


def read_idx(path: str | Path) -> np.ndarray:
    """Reads one IDX file of unsigned bytes, gzipped or not (its first bytes tell) -> uint8 array, 1-d to 4-d.

    Raises MinidiffError if the file cannot be read, is not IDX, is longer or shorter than its header gives, or has
    more than 2 GiB. Nothing is allocated if the file is too short for the shape in its header, and no gzip is inflated
    beyond that shape.
    """
    try:
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            if file.peek(2)[:2] != b"\x1f\x8b":
                return _parse(file, length, path)
            with gzip.open(file) as inflated:
                return _parse(inflated, DEFLATE_RATIO * length, path)
    except (OSError, EOFError, zlib.error) as error:
        raise MinidiffError(f"{path}: cannot be read ({error}); get the file again") from error


def _parse(stream: io.BufferedIOBase, most: int, path: str | Path) -> np.ndarray:
    """The array in a stream that holds `most` bytes at most."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 4:
        raise MinidiffError(f"{path}: starts with {magic.hex(' ')!r}, which is no IDX of bytes; get the file again")
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise MinidiffError(f"{path}: ends within its header; get the file again")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    total = math.prod(shape)
    if not 0 < total <= MAX_BYTES:
        raise MinidiffError(f"{path}: its header gives the shape {shape}, which is out of range; get the file again")
    if total > most:
        raise MinidiffError(f"{path}: is too short for the shape {shape} in its header; get the file again")

    items = np.empty(total, np.uint8)
    filled, view = 0, items.data
    while filled < total and (n := stream.readinto(view[filled : filled + CHUNK])):
        filled += n
    if filled < total:
        raise MinidiffError(f"{path}: holds {filled} of {total} items; get the file again")
    if stream.read(1):
        raise MinidiffError(f"{path}: has more than the {total} items of its header; get the file again")
    return items.reshape(shape)
