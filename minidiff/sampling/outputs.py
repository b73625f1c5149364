"""Files that samples are written to: checks before sampling, the NumPy archive, the layout of sheets by class."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from minidiff.data.imaging import check_image_output, to_uint8
from minidiff.errors import MinidiffError
from minidiff.files import check_file, check_new_folder, followed, write_output


def check_outputs(
    out: Path | None,
    gif: Path | None,
    npz: Path | None,
    folder: Path | None,
    *inputs: Path,
    preview: Path | None = None,
) -> None:
    """Raises MinidiffError if a path cannot be written, lies in `folder` or is an input, or if two are one file."""
    for image in filter(None, (out, preview)):
        check_image_output(image, *inputs)
    if gif:
        check_image_output(gif, *inputs, animated=True)
    if npz:
        check_file(npz, *inputs)
        if npz.suffix.lower() != ".npz":
            raise MinidiffError(f"{npz}: is to be a NumPy archive; give a name that ends in .npz")
    if folder:
        check_new_folder(folder)
        for path in (out, gif, npz, preview):
            if path and followed(path).is_relative_to(followed(folder)):
                raise MinidiffError(f"{path}: lies in {folder}, which is to hold single images; choose another place")
    for one, other in combinations(filter(None, (out, gif, npz, preview)), 2):
        if followed(one) == followed(other):
            raise MinidiffError(f"{other}: is given for two files; give each file a name of its own")


def finished(x0: np.ndarray) -> np.ndarray:
    """Samples x0 float32 in [-1, 1] as images (N, H, W, C) uint8. Raises MinidiffError if a value is not finite."""
    check_finite(x0)
    return to_uint8(x0)


def check_finite(x0: np.ndarray) -> None:
    """Raises MinidiffError if a value of the samples is not finite, as with weights that are too large."""
    if not np.isfinite(x0).all():
        raise MinidiffError("the samples hold values that are not finite; copy the weights, or train the network again")


def write_npz(path: Path, images: np.ndarray) -> None:
    """Write images (N, H, W, C) uint8, or points or noise, float32, as arr_0 of a NumPy archive, atomically."""
    write_output(path, lambda file: np.savez(file, images))


def rows_by_class(labels: np.ndarray | None) -> dict[str, Any]:
    """`columns` and `cells` of a sheet of images with these labels (n,), which are in order.

    Each class begins a row if none has more than 16 images; otherwise they follow one another in rows of 16. Empty for
    labels of fewer than two classes.
    """
    _, counts = np.unique([] if labels is None else labels, return_counts=True)
    if len(counts) < 2:
        return {}
    columns = min(counts.max(), 16)
    begins = np.arange(len(counts)) * columns if columns == counts.max() else np.cumsum(counts) - counts
    cells = np.concatenate([begin + np.arange(n) for begin, n in zip(begins, counts, strict=True)])
    return {"columns": int(columns), "cells": cells.tolist()}
