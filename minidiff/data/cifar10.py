"""CIFAR-10 (Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009), the binary version.

A batch is a sequence of records: one label byte, then a 32x32 image as its red, green and blue plane, row by
row. An archive's members must have the expected names and lengths, and are read in memory: nothing is extracted to a
path. The Python version is a pickle, which can run code, and is refused.
"""

import gzip
import hashlib
import http.client
import os
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from minidiff.data.dataset import Dataset, Progress, from_arrays
from minidiff.errors import MinidiffError, NoSplit

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
LENGTH = 170_052_171
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
TIMEOUT = 30.0  # seconds without a byte

ARCHIVE, FOLDER, PICKLED = "cifar-10-binary.tar.gz", "cifar-10-batches-bin", "cifar-10-batches-py"
META = "batches.meta.txt"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPLITS = {"train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "test": ("test_batch.bin",)}

RECORD = 1 + 3 * 32 * 32
MAX_BYTES = 2**31  # of a batch in a folder: more than ten times all of CIFAR-10
LIMITS: dict[str, int] = {META: 2**12, "readme.html": 2**16}  # bytes of an archive's files
LIMITS |= dict.fromkeys(SPLITS["train"] + SPLITS["test"], 10_000 * RECORD)
EXTENDED = "an extended header"  # timestamps and the like; ignored
BLOCK = 512  # of a tar
MAX_PADDING = 2**20  # zeros after its last file
CHUNK = 2**18


def is_cifar10(folder: str | Path) -> bool:
    """Whether a folder holds CIFAR-10, the Python version included, or is the folder of its batches."""
    names = (FOLDER, PICKLED, "data_batch_1", *SPLITS["train"], *SPLITS["test"])
    return any(os.path.exists(Path(folder) / name) for name in names)


def cifar10(path: str | Path, split: str = "train") -> Dataset:
    """Read the binary version from its .tar.gz, its folder, or that folder's parent.

    A batch may have any positive number of records (in an archive up to the official 10,000). Class names are read from
    batches.meta.txt; without that file they are CIFAR-10's. Raises MinidiffError if a batch is missing or of a wrong
    length, a label is above 9, the archive is damaged or has other members, and for the Python version.
    """
    if split not in SPLITS:
        raise MinidiffError(f"{split}: no such split; take {' or '.join(SPLITS)}")
    path = Path(path)
    wanted = (META, *SPLITS[split])
    files = _read_archive(path, wanted) if os.path.isfile(path) else _read_folder(path, wanted)
    for name in SPLITS[split]:
        if name not in files:
            raise NoSplit(f"{path}: {name} of CIFAR-10's binary version is missing; get it again")
    classes = _class_names(files.pop(META), path) if META in files else CLASSES

    total = sum(len(files[name]) // RECORD for name in SPLITS[split])
    images, labels = np.empty((total, 32, 32, 3), np.uint8), np.empty(total, np.uint8)
    start = 0
    for name in SPLITS[split]:
        records = _records(files.pop(name), f"{path}: {name}")  # (n, 3073)
        stop = start + len(records)
        labels[start:stop] = records[:, 0]
        images[start:stop] = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (n, 32, 32, 3)
        start = stop
    return from_arrays("CIFAR-10", images, labels, classes)


def _records(data: bytes, where: str) -> np.ndarray:
    """A batch's bytes -> (n, 3073) uint8, label first."""
    if not data or len(data) % RECORD:
        raise MinidiffError(f"{where} has {len(data)} bytes, no positive multiple of {RECORD}; get it again")
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
    if records[:, 0].max() > 9:
        i = int(np.argmax(records[:, 0] > 9))
        raise MinidiffError(f"{where} has the label {records[i, 0]} in record {i}, not 0 to 9; get it again")
    return records


def _class_names(text: bytes, path: Path) -> tuple[str, ...]:
    """The ten lines of batches.meta.txt; empty ones do not count."""
    lines = text.decode(errors="replace").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != 10:
        raise MinidiffError(f"{path}: {META} has {len(names)} class names, not 10; get it again")
    return names


def _pickled(path: Path) -> MinidiffError:
    return MinidiffError(
        f"{path}: is CIFAR-10's Python version, a pickle, which is never read; get the binary version, {URL}"
    )


def _read_folder(path: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """Name -> content of those wanted files that exist."""
    folder = path / FOLDER if os.path.isdir(path / FOLDER) else path
    files = {}
    try:
        for file in (folder / name for name in wanted if os.path.isfile(folder / name)):
            if file.stat().st_size > (LIMITS[META] if file.name == META else MAX_BYTES):
                raise MinidiffError(f"{file}: is larger than any file of CIFAR-10; get it again")
            files[file.name] = file.read_bytes()
    except OSError as error:
        raise MinidiffError(f"{path}: cannot be read ({error}); check that the files are yours") from error
    if not files and (os.path.exists(path / PICKLED) or os.path.exists(path / "data_batch_1")):
        raise _pickled(path)
    return files


def _read_archive(path: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """Name -> content of the wanted members of a .tar.gz; the whole archive is checked.

    A tar is a sequence of headers of one block, each followed by its member's blocks; zeros end it. tarfile only parses
    headers here: by itself it would trust the sizes in extended headers.
    """
    files: dict[str, bytes] = {}
    names: set[str] = set()
    try:
        with gzip.open(path) as stream:
            while any(block := stream.read(BLOCK)):
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                name, limit = _expected(header, path)
                if not 0 <= header.size <= limit:
                    raise MinidiffError(
                        f"{path}: {name} has {header.size} bytes, not 0 to {limit}; get the archive again"
                    )
                if name in names and name != EXTENDED:
                    raise MinidiffError(f"{path}: holds {name} twice; get the archive again")
                names.add(name)
                content = stream.read(-(-header.size // BLOCK) * BLOCK)
                if len(content) < header.size:
                    raise EOFError(f"it ends within {name}")
                if name in wanted:
                    files[name] = content[: header.size]
            if len(stream.read(MAX_PADDING)) == MAX_PADDING:  # to the end: gzip's checksum comes last
                raise MinidiffError(f"{path}: goes on after its last file; get the archive again")
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise MinidiffError(f"{path}: is damaged or no .tar.gz ({error}); delete it and get it again") from error
    return files


def _expected(header: tarfile.TarInfo, path: Path) -> tuple[str, int]:
    """A member's name and largest allowed size, by its header. Raises MinidiffError if CIFAR-10 has no such member."""
    folder, _, name = header.name.partition("/")
    if header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE):
        return EXTENDED, 2**16
    if header.name == FOLDER and header.isdir():
        return FOLDER, 0
    if folder == FOLDER and name in LIMITS and header.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
        return name, LIMITS[name]
    if folder == PICKLED:
        raise _pickled(path)
    raise MinidiffError(f"{path}: holds {header.name!r}, no file of CIFAR-10's binary version; get it again")


def cache_dir() -> Path:
    """The folder of downloads: "minidiff" in the user's cache directory, by the system's convention."""
    if sys.platform == "win32":
        home = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        home = Path.home() / "Library" / "Caches"
    else:
        try:
            home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        except RuntimeError:
            raise MinidiffError("no home folder is known: set XDG_CACHE_HOME to one that can be written") from None
    return Path(home) / "minidiff"


def download_cifar10(folder: str | Path, progress: Progress | None = None) -> Path:
    """Download the official archive (170 MB) into a folder, which is made, and return its path.

    progress(done, total) is called with numbers of bytes. The archive is renamed to its name only once its length and
    SHA-256 are right. Raises MinidiffError if the network or the disk fails, or the length or checksum is wrong.
    """
    target = Path(folder) / ARCHIVE
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as scratch:
            part = Path(scratch) / ARCHIVE
            with open(part, "wb") as file:
                _fetch(file, progress)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is also a response, which keeps the connection open
        raise MinidiffError(
            f"{URL}: cannot be fetched ({error}); check network and disk, or put the file at {target}"
        ) from error
    return target


def _fetch(file: BinaryIO, progress: Progress | None) -> None:
    """Download URL to an open file. Raises MinidiffError if it has not LENGTH bytes or the checksum SHA256."""
    done, digest = 0, hashlib.sha256()
    with urllib.request.urlopen(URL, timeout=TIMEOUT) as response:
        while done <= LENGTH and (chunk := response.read(CHUNK)):
            done += len(chunk)
            digest.update(chunk)
            file.write(chunk)
            if progress:
                progress(done, LENGTH)
    if done != LENGTH:
        amount = f"more than {LENGTH}" if done > LENGTH else f"{done} of {LENGTH}"
        raise MinidiffError(f"{URL}: gave {amount} bytes; try again")
    if digest.hexdigest() != SHA256:
        raise MinidiffError(f"{URL}: gave a file with a wrong checksum, which was deleted; try again")
