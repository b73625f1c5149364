"""Captions of an image folder, read from a file in it.

captions.csv, or metadata.jsonl as in Hugging Face's imagefolder; other columns and keys are ignored.

    file_name,text                             {"file_name": "tom.png", "text": "a grey cat"}
    tom.png,a grey cat                         {"file_name": "dogs/rex.png", "text": "a dog, asleep"}
    dogs/rex.png,"a dog, asleep"
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from minidiff.errors import MinidiffError
from minidiff.files import replace_file

NAMES = ("captions.csv", "metadata.jsonl")
MAX_BYTES = 2**28  # a million captions of 256 bytes
NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")  # controls; JSON can write half a pair


def captions_of(root: Path, files: Sequence[Path]) -> tuple[str, ...]:
    """The captions of these files, which are all images of the folder; () if neither of NAMES is there.

    Raises MinidiffError, which names file and line, if both of NAMES are there, the file cannot be read or is not
    UTF-8, a line has no file name or text, a caption is empty or has control characters, an image has two captions or
    none, or a caption names no image of the folder.
    """
    present = [root / name for name in NAMES if (root / name).exists()]
    if not present:
        return ()
    if len(present) > 1:
        raise MinidiffError(f"{root}: has both {' and '.join(NAMES)}; keep one")
    (source,) = present
    found = _read(source)
    captions = []
    for file in files:
        name = file.relative_to(root).as_posix()
        if name not in found:
            raise MinidiffError(f"{source}: has no caption for {name}; add one, or remove the image")
        captions.append(found.pop(name)[1])
    for name, (line, _) in found.items():
        raise MinidiffError(f"{source}, line {line}: {name!r:.80} is no image of the folder; correct the name")
    return tuple(captions)


def save_captions(root: Path, names: Sequence[str], captions: Sequence[str]) -> None:
    """Write captions.csv into a folder: a caption for each file name."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("file_name", "text"), *zip(names, captions, strict=True)])
    replace_file(root / NAMES[0], lambda part: part.write_text(text.getvalue(), encoding="utf-8"))


def _read(source: Path) -> dict[str, tuple[int, str]]:
    """File name -> its line number and caption."""
    rows = _csv_rows if source.suffix == ".csv" else _jsonl_rows
    found: dict[str, tuple[int, str]] = {}
    for line, row in rows(io.StringIO(_text(source), newline=""), source):
        name, caption = (_cell(row, key, f"{source}, line {line}") for key in ("file_name", "text"))
        if wrong := NO_TEXT.search(caption):
            raise MinidiffError(f"{source}, line {line}: its text holds {wrong[0]!r}, which no caption has; remove it")
        name = Path(name).as_posix()
        if name in found:
            raise MinidiffError(
                f"{source}, line {line}: {name!r:.80} has a caption already, in line {found[name][0]}; keep one"
            )
        found[name] = line, caption
    return found


def _text(source: Path) -> str:
    """The file's text, without a byte order mark."""
    if not source.is_file():
        raise MinidiffError(f"{source}: is no file; replace or remove it")
    try:
        if (length := source.stat().st_size) > MAX_BYTES:
            raise MinidiffError(f"{source}: has {length} bytes, more than {MAX_BYTES}; is it the right file?")
        data = source.read_bytes()
    except OSError as error:
        raise MinidiffError(f"{source}: cannot be read ({error}); correct or remove it") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise MinidiffError(f"{source}, line 1: is UTF-16; save the file as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise MinidiffError(f"{source}, line {line}: is not UTF-8 ({error.reason}); save the file as UTF-8") from error


def _csv_rows(file: TextIO, source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each row's last line, and its cells by the names in the first row."""
    rows, line = csv.DictReader(file, strict=True), 0
    try:
        if sign := _separator((rows.fieldnames or [""])[0]):
            raise MinidiffError(f"{source}, line 1: its columns are separated by {sign!r}; separate them by commas")
        line = rows.line_num
        for row in rows:
            line = rows.line_num
            if None in row:
                raise MinidiffError(
                    f"{source}, line {line}: has more cells than the first line; "
                    'put a caption with commas between "quotation marks"'
                )
            yield line, row
    except csv.Error as error:
        to = f" to {last}" if (last := rows.reader.line_num) > line + 1 else ""  # an open quotation mark runs on
        remedy = 'close each quotation mark, and write "" for one within a caption'
        remedy = f"shorten it, or {remedy}" if "field limit" in str(error) else remedy
        raise MinidiffError(f"{source}, line {line + 1}{to}: cannot be read ({error}); {remedy}") from error


def _separator(header: str) -> str:
    """The character that separates the column names instead of a comma; "" if there is none."""
    return next((sign for sign in ";\t|" if sign in header and "file_name" in header.split(sign)), "")


def _jsonl_rows(file: TextIO, source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each line that is not blank, and the object on it."""
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MinidiffError(f"{source}, line {number}: is no JSON ({error}); correct or remove it") from error
        if not isinstance(row, dict):
            raise MinidiffError(f'{source}, line {number}: is no object; write {{"file_name": ..., "text": ...}}')
        yield number, row


def _cell(row: dict[str, Any], key: str, where: str) -> str:
    """The text at `key`. Raises MinidiffError if it is missing, no string, or blank."""
    if not isinstance(text := row.get(key), str):
        raise MinidiffError(f"{where}: has no text named {key}; name the columns file_name and text, and fill both")
    if not text.strip():
        raise MinidiffError(f"{where}: {key} is empty; fill it in")
    return text
