"""Images in a NumPy archive: arr_0, uint8 (N, H, W, C), as written by `minidiff sample --npz`, and by others."""

import math
import zipfile
from pathlib import Path

import numpy as np

from minidiff.errors import MinidiffError

ARRAY = "arr_0.npy"
MAX_BYTES = 2**31  # 700,000 RGB images of 32x32


def read_npz(path: str | Path) -> np.ndarray:
    """The images (N, H, W, C) of an archive, uint8, C is 1 or 3; its other arrays are ignored.

    Raises MinidiffError if the file cannot be read, has no such array, or if the array's size differs from that in its
    header, which is checked before anything is allocated. Nothing is unpickled.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(ARRAY) as file:
            length = archive.getinfo(ARRAY).file_size
            shape, fortran, dtype = _header(file)
            if dtype != np.uint8 or fortran or len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
                raise ValueError(f"arr_0 is {dtype} {shape}, not uint8 (N, H, W, 1 or 3)")
            if file.tell() + math.prod(shape) != length or length > MAX_BYTES:
                raise ValueError(f"arr_0 has {length} bytes, its header gives the shape {shape}")
            return np.frombuffer(file.read(), np.uint8).reshape(shape)
    except KeyError:
        raise MinidiffError(f"{path}: holds no arr_0; write it with minidiff sample --npz or np.savez") from None
    except Exception as error:  # readers raise any error on damaged files: BadZipFile, ValueError, zlib.error, ...
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MinidiffError(f"{path}: cannot be read as images ({reason}); write it again") from None


def _header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and dtype, as parsed by NumPy."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)
