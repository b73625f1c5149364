"""Safetensors files: one, or several with an index. Nothing is ever unpickled.

File contents are not trusted: the header's length is limited, shapes and offsets must agree with one another and with
the file, and names that are not printable and an index that names files outside of its folder are refused. Arrays are
read one at a time, so that loading holds no second copy of a network. float16 and bfloat16 are widened to float32,
which loses nothing, unless a network is so large that its float16 weights are widened where they are used
(networks.fill_weights).
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np

from minidiff.errors import MinidiffError
from minidiff.files import LARGEST_JSON, read_json, replace_file

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # NumPy has no bfloat16: it is the upper half of a float32

# Names of the attention projections in older versions of diffusers -> today's
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class Stored:
    """Where an array lies in a file."""

    path: Path
    name: str
    dtype: str  # safetensors' name: a key of DTYPES
    shape: tuple[int, ...]
    offset: int  # in bytes from the beginning of the file
    file: os.stat_result  # when the header was read

    @property
    def size(self) -> int:
        return prod(self.shape)

    def part(self, start: int, shape: tuple[int, ...]) -> "Stored":
        """The array's values from number `start` on, where they lie in the file, as an array of this shape."""
        return replace(self, shape=shape, offset=self.offset + start * np.dtype(DTYPES[self.dtype]).itemsize)

    def read(self) -> np.ndarray:
        """The array as float32. Raises MinidiffError as `read_arrays` does."""
        (a,) = read_arrays([self])
        return a


def read_arrays(arrays: Iterable[Stored], half: bool = False) -> Iterator[np.ndarray]:
    """The arrays as float32, one after the other; each file is opened once. half: float16 stays float16.

    Raises MinidiffError if a file ends too early, or was replaced since its header was read.
    """
    for stored, a in _read(arrays):
        if stored.dtype == "BF16":
            a = np.left_shift(a, 16, dtype=np.uint32).view(np.float32)
        yield a if half else a.astype(np.float32, copy=False)


def _read(arrays: Iterable[Stored]) -> Iterator[tuple[Stored, np.ndarray]]:
    """The arrays one after the other, in the dtypes of DTYPES."""
    with ExitStack() as closing:
        files: dict[Path, BinaryIO] = {}
        for stored in arrays:
            try:
                if stored.path not in files:
                    files[stored.path] = closing.enter_context(open(stored.path, "rb"))
                file = files[stored.path]
                if not os.path.samestat(os.fstat(file.fileno()), stored.file):
                    raise MinidiffError(f"{stored.path}: was replaced while it was read; try again")
                file.seek(stored.offset)
                a = np.fromfile(file, DTYPES[stored.dtype], stored.size).reshape(stored.shape)
            except (OSError, ValueError) as error:
                raise damaged(stored.path, error) from None
            yield stored, a


def find_weights(folder: Path, weights: str = WEIGHTS) -> dict[str, Stored]:
    """Where each parameter of a network's folder lies, by its name in today's diffusers; only headers are read.

    weights: the name of the file; of a sharded network's index without .index.json.
    Raises MinidiffError for a folder without safetensors, and for files that are damaged or contradict one another.
    """
    index = folder / f"{weights}.index.json"
    if index.is_file():
        found = _shards(index)
    elif (folder / weights).exists():
        found, _ = open_safetensors(folder / weights)
    else:
        refuse_pickles(folder)
        for other in sorted(folder.glob(f"{Path(weights).stem}.*.safetensors")):
            raise MinidiffError(f"{other}: is a variant of the weights; rename it to {weights}")
        raise MinidiffError(f"{folder / weights}: no such file; copy or train it again")
    renamed = {_new_name(name): stored for name, stored in found.items()}
    if len(renamed) < len(found):
        raise MinidiffError(f"{folder}: has attention weights by old names and by new ones; save it in diffusers again")
    return renamed


def _new_name(name: str) -> str:
    return re.sub(r"(?<=\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)", lambda old: RENAMED[old[0]], name)


def refuse_pickles(path: Path) -> None:
    """Raises MinidiffError if this is a pickle, or a folder that holds one."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.suffix in PICKLES and file.is_file():
            raise MinidiffError(
                f"{file}: is a pickle, which can run any code, and is not read; "
                "load it in diffusers, a .ckpt by from_single_file, and save_pretrained(..., safe_serialization=True)"
            )


def _shards(index: Path) -> dict[str, Stored]:
    """The arrays of a sharded network, whose files must hold exactly the arrays that the index lists for each."""
    weight_map = {name: shard for name, shard in read_json(index, _weight_map).items() if not _is_position_ids(name)}
    shards = {shard: open_safetensors(index.parent / shard)[0] for shard in sorted(set(weight_map.values()))}
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise MinidiffError(
                f"{index}: says that {shard} holds {name!r:.200}, which it does not; copy all files again"
            )
    for shard, arrays in shards.items():
        for name in arrays:
            if weight_map.get(name) != shard:
                raise MinidiffError(f"{index}: does not say that {shard} holds {name}; copy all files again")
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def _weight_map(values) -> dict[str, str]:
    """Array name -> file name, from an index; only files beside the index are allowed."""
    weight_map = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise MinidiffError("has no weight_map; copy it again")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w-][\w.-]{0,200}\.safetensors", shard):
            raise MinidiffError(f"names the file {shard!r:.200}; a name that ends in .safetensors is allowed, no path")
    return weight_map


def _is_position_ids(name: str) -> bool:
    """Whether it is CLIP's buffer 0, 1, 2, ..., which older versions of transformers saved; it is ignored."""
    return name.endswith("position_ids")


def open_safetensors(
    path: Path, is_left_out: Callable[[str], bool] = _is_position_ids
) -> tuple[dict[str, Stored], dict[str, str]]:
    """Where the arrays of a file lie, by name, and the file's metadata.

    is_left_out  of an array's name, which may then be of any dtype
    Raises MinidiffError if the file is damaged.
    """
    try:
        if path.exists() and not path.is_file():  # a FIFO would be waited for
            raise ValueError("it is no regular file")
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST_JSON:
                raise ValueError(f"a header of {length} bytes")
            text, now = file.read(length), os.fstat(file.fileno())
        arrays, metadata = _parse_header(text, now.st_size - 8 - length)
    except FileNotFoundError:
        raise MinidiffError(f"{path}: no such file; copy or train it again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from None
    kept = [name for name in arrays if not is_left_out(name)]
    return {name: _stored(path, name, arrays[name], 8 + length, now) for name in kept}, metadata


def _parse_header(text: bytes, size: int) -> tuple[dict[str, dict], dict[str, str]]:
    """The entry of every array by name, in the order of the file, and the metadata.

    Raises ValueError unless the arrays fill the `size` bytes after the header, one after the other. The length of an
    array is checked against its shape if its dtype is one of DTYPES.
    """
    header = json.loads(text)
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise ValueError("the header is no table")
    metadata = header.pop("__metadata__", {})
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the metadata is not text")
    for name, entry in header.items():
        _check_entry(name, entry)
    arrays = dict(sorted(header.items(), key=lambda item: item[1]["data_offsets"]))
    end = 0
    for name, entry in arrays.items():
        start, stop = entry["data_offsets"]
        if start != end:
            raise ValueError(f"{name!r:.80} begins at byte {start}, not at {end}")
        end = stop
    if end != size:
        raise ValueError(f"{size} bytes of data in the place of {end}")
    return arrays, metadata


def _check_entry(name: str, entry: dict) -> None:
    """Raises ValueError unless an array's dtype, shape and offsets are there and agree with one another."""
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(dtype, str) and _are_counts(shape) and _are_counts(offsets) and len(offsets) == 2):
        raise ValueError(f"{name!r:.80} has no dtype, shape and offsets")
    length = offsets[1] - offsets[0]
    if length < 0 or (dtype in DTYPES and length != prod(shape) * np.dtype(DTYPES[dtype]).itemsize):
        raise ValueError(f"{name!r:.80} has {length} bytes, which its shape is not of")


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    """Whether it is a list of a few integers from 0 on; NumPy has up to 64 axes."""
    return isinstance(values, list) and len(values) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in values)


def _stored(path: Path, name: str, entry: dict, start: int, file: os.stat_result) -> Stored:
    if not name.isprintable() or len(name) > 200:
        raise MinidiffError(f"{path}: has an array of the name {name!r:.200}; is it the right file?")
    if entry["dtype"] not in DTYPES:
        known = ", ".join(DTYPES)
        raise MinidiffError(f"{path}: {name} is {entry['dtype']}, and only {known} are read; save it in float32")
    return Stored(path, name, entry["dtype"], tuple(entry["shape"]), start + entry["data_offsets"][0], file)


def damaged(path: Path, error: Exception) -> MinidiffError:
    """The error of a file that cannot be read."""
    reason = " ".join(str(error).split())[:200]
    return MinidiffError(f"{path}: damaged or not safetensors ({reason}); copy or train it again")


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write arrays and metadata to a file atomically."""
    from safetensors.numpy import save  # only files that are written need the library

    data = save(tensors, metadata)  # save_file would leave a temporary file behind if the process is killed
    replace_file(path, lambda part: part.write_bytes(data))


def copy_arrays(
    path: Path, arrays: Mapping[str, Sequence[Stored]], metadata: dict[str, str], half: bool = False
) -> None:
    """Write a file of arrays from other files atomically, one after the other, in the dtypes that they have there.

    arrays  name -> the parts of an array, of one dtype, which are joined along the first axis
    half    they become float16
    Raises MinidiffError for values that are too large for float16, and as `read_arrays` does.
    """
    arrays = dict(sorted(arrays.items(), key=lambda item: item[1][0].dtype != "F32"))  # float32 needs multiples of 4
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (first, *others) in arrays.items():
        shape = (first.shape[0] + sum(part.shape[0] for part in others), *first.shape[1:]) if others else first.shape
        dtype = "F16" if half else first.dtype
        if not half and any(part.dtype != dtype for part in others):
            raise MinidiffError(f"{first.path}: {name} is of several dtypes; export with --half")
        start, end = end, end + prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def write(part: Path) -> None:
        with open(part, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, parts in arrays.items():
                for a in _as_float16(name, parts) if half else (a for _, a in _read(parts)):
                    a.tofile(file)

    replace_file(path, write)


def _as_float16(name: str, parts: Sequence[Stored]) -> Iterator[np.ndarray]:
    for stored, a in zip(parts, read_arrays(parts), strict=True):
        if np.abs(a).max(initial=0) > np.finfo(np.float16).max:
            raise MinidiffError(f"{stored.path.name}: {name} has values beyond float16's 65504; export without --half")
        yield a.astype(np.float16)


def to_float16(folder: Path) -> None:
    """Rewrite all weights below a folder as float16, half their size; they are read back as float32.

    Raises MinidiffError for a weight that is too large for float16.
    """
    for path in sorted(folder.rglob("*.safetensors")):
        arrays, metadata = open_safetensors(path)
        copy_arrays(path, {name: [a] for name, a in arrays.items()}, metadata, half=True)
