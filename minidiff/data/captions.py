"""Captions of a folder's pictures: a file beside them that says what each one shows.

captions.csv, or metadata.jsonl as Hugging Face's imagefolder has it; other columns and keys are passed over.

    file_name,text                             {"file_name": "tom.png", "text": "a grey cat"}
    tom.png,a grey cat                         {"file_name": "dogs/rex.png", "text": "a dog, asleep"}
    dogs/rex.png,"a dog, asleep"
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from minidiff.errors import MinidiffError

NAMES = ("captions.csv", "metadata.jsonl")
MAX_BYTES = 2**28  # a million pictures, with much to say of each


def captions_of(root: Path, files: Sequence[Path]) -> tuple[str, ...]:
    """What the folder says of these files, which are all its pictures; () if neither of NAMES is there.

    Raises MinidiffError, which names file and line, for both of NAMES, a file that cannot be read, a line without
    file name or text, an empty caption, a second one for the same picture, one for a picture that is not there, and
    for a picture that has none.
    """
    present = [root / name for name in NAMES if (root / name).exists()]
    if not present:
        return ()
    if len(present) > 1:
        raise MinidiffError(f"{root}: has both {' and '.join(NAMES)}; keep the one that holds")
    (source,) = present
    found = _read(source)
    captions = []
    for file in files:
        name = file.relative_to(root).as_posix()
        if name not in found:
            raise MinidiffError(f"{source}: says nothing of {name}; add its caption, or remove the picture")
        captions.append(found.pop(name)[1])
    for name, (line, _) in found.items():
        raise MinidiffError(f"{source}, line {line}: {name!r:.80} is none of the folder's pictures; correct the name")
    return tuple(captions)


def _read(source: Path) -> dict[str, tuple[int, str]]:
    """File name -> the line that it is on, and its caption."""
    rows = _csv_rows if source.suffix == ".csv" else _jsonl_rows
    found: dict[str, tuple[int, str]] = {}
    line = 0
    try:
        if not source.is_file():
            raise MinidiffError(f"{source}: is no file; replace or remove it")
        if (length := source.stat().st_size) > MAX_BYTES:
            raise MinidiffError(f"{source}: has {length} bytes, more than {MAX_BYTES}; is it the right file?")
        with open(source, encoding="utf-8-sig", newline="") as file:
            for line, row in rows(file, source):
                name, text = (_cell(row, key, f"{source}, line {line}") for key in ("file_name", "text"))
                name = Path(name).as_posix()
                if name in found:
                    raise MinidiffError(
                        f"{source}, line {line}: {name!r:.80} has a caption already, in line {found[name][0]}; keep one"
                    )
                found[name] = line, text
    except (OSError, ValueError, RecursionError, csv.Error) as error:  # ValueError: no UTF-8, no JSON
        where = f" beyond line {line}" if line else ""
        raise MinidiffError(f"{source}: cannot be read{where} ({error}); correct or remove it") from error
    return found


def _csv_rows(file: TextIO, source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each row's last line, and its cells by the names in the first row."""
    rows = csv.DictReader(file, strict=True)
    for row in rows:
        if None in row:
            raise MinidiffError(
                f"{source}, line {rows.line_num}: has more cells than the first line; "
                'put a caption with commas between "quotation marks"'
            )
        yield rows.line_num, row


def _jsonl_rows(file: TextIO, source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each line that is not blank, and the object on it."""
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict):
            raise MinidiffError(f'{source}, line {number}: is no object; write {{"file_name": ..., "text": ...}}')
        yield number, row


def _cell(row: dict[str, Any], key: str, where: str) -> str:
    """A text that is there and not blank."""
    if not isinstance(text := row.get(key), str):
        raise MinidiffError(f"{where}: has no text named {key}; name the columns file_name and text, and fill both")
    if not text.strip():
        raise MinidiffError(f"{where}: {key} is empty; fill it in")
    text.encode()  # half a surrogate pair, which JSON can write, raises ValueError
    return text
