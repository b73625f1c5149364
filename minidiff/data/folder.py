"""Image folders: one sub-folder per class, or the images of one class in the folder itself."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from minidiff.data import memory
from minidiff.data.captions import NAMES, captions_of
from minidiff.data.dataset import Dataset, Notice, Skip, from_arrays
from minidiff.data.imaging import FORMATS, load_image
from minidiff.errors import MinidiffError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
GREY = ("1", "L", "I", "I;16", "I;16B")
MAX_SIZE = 4096
SHOWN = 5  # names of ignored files in a notice
LARGE = 10**9  # bytes; a larger dataset takes long to read


def folder(
    path: str | Path, size: int | None = None, skip: Skip | None = None, notice: Notice | None = None
) -> Dataset:
    """Read all images of a folder, sorted by class and name; C is 1 if all of them are grey, else 3.

    Classes are the sub-folders that hold an image, or, if there is none, the folder itself. Hidden files, other files
    and deeper folders are ignored. All images are read at once, so errors show before training.

    size    side in pixels to which images are resized and centre-cropped; None: all have one size already
    skip    skip(error) for each unreadable image, which is left out; None: the error is raised
    notice  notice(text), before images are read, for ignored files and for the memory that a large dataset needs

    Captions come from captions.csv or metadata.jsonl, if there is one (captions.py). The dataset's `mirrors` is then
    false: captions may mention left and right.
    Raises MinidiffError if the folder cannot be read or holds no image, there are images both in it and in sub-folders,
    an image cannot be read (without `skip`), sizes differ (without `size`), captions do not match the images, or the
    images, by the header of the first, need more memory than is available.
    """
    if size is not None and not 1 <= size <= MAX_SIZE:
        raise MinidiffError(f"size {size}: is out of range; give 1 to {MAX_SIZE} pixels")
    classes = _classes(Path(path))
    files = [file for members in classes.values() for file in members]
    labels = np.repeat(np.arange(len(classes)), [len(members) for members in classes.values()])
    captions = captions_of(Path(path), files)
    if notice and (others := _others(Path(path), files)):
        notice(f"{path}: {_ignored(others)}")
    channels = 3 if any(map(_has_colour, files)) else 1
    _check_memory(path, files, channels, size, notice)
    name = os.path.basename(os.path.abspath(path))
    images, read = _load_all(files, channels, size, skip)
    captions = tuple(captions[i] for i in read) if captions else ()
    return from_arrays(name, images, labels[read], tuple(classes), mirrors=not captions, captions=captions)


def _classes(root: Path) -> dict[str, list[Path]]:
    """Class name -> its image files, both sorted by name."""
    try:
        own = _image_files(root)
        below = {entry.name: _image_files(entry) for entry in _visible(root) if entry.is_dir()}
    except OSError as error:
        raise MinidiffError(f"{root}: cannot be read ({error}); give a folder that is yours") from error
    classes = {name: files for name, files in below.items() if files}
    if not own and not classes:
        raise MinidiffError(f"{root}: holds no image ({' '.join(SUFFIXES)}), nor do its sub-folders; add some")
    if own and classes:
        raise MinidiffError(
            f"{root}: has images ({own[0].name}) beside sub-folders of images ({min(classes)}); "
            "move them into a sub-folder"
        )
    return classes or {os.path.basename(os.path.abspath(root)): own}


def _visible(directory: Path) -> list[Path]:
    return sorted((p for p in directory.iterdir() if not p.name.startswith(".")), key=lambda p: p.name)


def _image_files(directory: Path) -> list[Path]:
    return [p for p in _visible(directory) if p.suffix.lower() in SUFFIXES and not p.is_dir()]


def _others(root: Path, files: Sequence[Path]) -> list[str]:
    """Other visible entries of the folder and its classes, as relative paths; those of folders end in a slash."""
    classes, read = {file.parent for file in files} - {root}, {*files, *(root / name for name in NAMES)}
    entries = [entry for directory in (root, *sorted(classes)) for entry in _visible(directory)]
    others = [entry for entry in entries if entry not in read and entry not in classes]
    return [entry.relative_to(root).as_posix() + "/" * entry.is_dir() for entry in others]


def _ignored(names: Sequence[str]) -> str:
    """Their number, and the first names."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} other file{'s' * (len(names) > 1)} ignored: {', '.join(names[:SHOWN])}{more}"


def _check_memory(
    path: str | Path, files: Sequence[Path], channels: int, size: int | None, notice: Notice | None
) -> None:
    """Raises MinidiffError if the images need more memory than is available; notice(text) for a large dataset."""
    headers = (header for header in map(_header, files) if header)
    width, height = (size, size) if size else next(headers, ("", (0, 0)))[1]
    needed, there = len(files) * height * width * channels, memory.available()
    what = f"{path}: {len(files):,} images of {width}x{height} need {needed / 1e9:.1f} GB of memory"
    if there is not None and needed > there:
        raise MinidiffError(f"{what}, {there / 1e9:.1f} GB are available; give a smaller --size, or fewer images")
    if notice and needed > LARGE:
        notice(what)


def _has_colour(file: Path) -> bool:
    """Whether the header has a colour mode. False if it cannot be read: `load_image` then raises the error."""
    header = _header(file)
    return header is not None and header[0] not in GREY


def _header(file: Path) -> tuple[str, tuple[int, int]] | None:
    """Mode and (width, height) of an image, without its pixels; None if they cannot be read."""
    if not file.is_file():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=FORMATS) as image:
                return image.mode, image.size
        except Exception:
            return None


def _load_all(
    files: Sequence[Path], channels: int, size: int | None, skip: Skip | None
) -> tuple[np.ndarray, list[int]]:
    """The readable images, in order, (N, H, W, channels) uint8, and the indices of their files."""
    images, read = np.zeros((0, 0, 0, channels), np.uint8), []
    for i, file in enumerate(files):
        try:
            image = _load(file, channels, size)
        except MinidiffError as error:
            if skip is None:
                raise
            skip(error)
            continue
        if not read:
            images = _allocate(len(files), image)
        if image.shape != images.shape[1:]:
            (height, width, _), (_, first_height, first_width, _) = image.shape, images.shape
            raise MinidiffError(
                f"{file} has {width}x{height} pixels, {files[read[0]]} has {first_width}x{first_height}; "
                "give one size for all, such as --size 32"
            )
        images[len(read)] = image
        read.append(i)
    if not read:
        raise MinidiffError(f"{files[0].parent}: none of its images can be read; replace them")
    return images[: len(read)], read


def _allocate(n: int, image: np.ndarray) -> np.ndarray:
    """Uninitialised memory for n images of this one's shape."""
    try:
        return np.empty((n, *image.shape), np.uint8)
    except MemoryError as error:
        height, width, _ = image.shape
        raise MinidiffError(f"{n} images of {width}x{height} do not fit into memory; give a smaller --size") from error


def _load(file: Path, channels: int, size: int | None) -> np.ndarray:
    """One image -> (H, W, channels) uint8, resized and centre-cropped to (size, size) if size is given."""
    pixels = load_image(file, channels)
    if size is None or pixels.shape[:2] == (size, size):
        return pixels
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    square = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return np.asarray(square).reshape(size, size, channels)
