"""Progress: which exercises are solved, by the SHA-256 of the file that passed."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any, Literal

from minidiff.errors import MinidiffError
from minidiff.files import read_json, write_json
from minidiff.learn.stub import FOLDER, answer_file, stub

State = Literal["-", "blank", "begun", "solved", "changed since solved"]
Solved = dict[int, str]  # number of an exercise -> SHA-256 of its file when it passed


def progress_file() -> Path:
    """The file with the progress, beside the answers."""
    return FOLDER / "progress.json"


def read_progress() -> Solved:
    """The exercises that are solved; {} if there is no file.

    Raises MinidiffError if the file is damaged, or holds anything else.
    """
    path = progress_file()
    if not os.path.lexists(path):
        return {}
    try:
        return read_json(path, _solved)
    except MinidiffError as error:
        raise MinidiffError(f"{error}, or delete it and check the solved exercises once more") from None


def _solved(value: Any) -> Solved:
    entries = value.items() if isinstance(value, dict) else [("", value)]
    for number, digest in entries:
        if not re.fullmatch("[1-9][0-9]{0,3}", number) or not re.fullmatch("[0-9a-f]{64}", str(digest)):
            raise MinidiffError("does not hold the progress of exercises; copy it again")
    return {int(number): digest for number, digest in entries}


def record_solved(number: int, source: bytes) -> Solved:
    """Record that an exercise's file of this content has passed; returns all that are solved.

    Raises MinidiffError as `read_progress` does, and if the file cannot be written.
    """
    solved = read_progress() | {number: sha256(source)}
    write_json(progress_file(), {str(number): solved[number] for number in sorted(solved)})
    return solved


def state(number: int, solved: Solved) -> State:
    """How far an exercise is: "-" if its file was not written yet, "blank" if the file is as it was written."""
    path = answer_file(number)
    if not path.is_file():
        return "-"
    source = path.read_bytes()
    if number in solved:
        return "solved" if solved[number] == sha256(source) else "changed since solved"
    return "blank" if source == stub(number).encode() else "begun"


def sha256(source: bytes) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(source).hexdigest()
