"""A file of prompts, one a line."""

from pathlib import Path

from minidiff.errors import MinidiffError

LARGEST = 16 << 20  # bytes


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file in UTF-8, one a line; blank lines are skipped.

    Raises MinidiffError for a file that is missing, without a prompt or too large, and, by its number, for a line that
    is not UTF-8 or holds control characters.
    """
    if not path.is_file():
        raise MinidiffError(f"{path}: no such file; give a text file with one prompt a line")
    try:
        if path.stat().st_size > LARGEST:
            raise MinidiffError(f"{path}: is larger than {LARGEST >> 20} MB; give a text file with one prompt a line")
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise MinidiffError(f"{path}: {error.strerror}; give a file that can be read") from None
    prompts = [_prompt(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise MinidiffError(f"{path}: holds no prompt; write one a line")
    return prompts


def _prompt(place: str, line: bytes) -> str:
    try:
        prompt = line.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise MinidiffError(f"{place}: is not UTF-8; save the file in that encoding") from None
    if any(ord(character) < 32 and character != "\t" for character in prompt):
        raise MinidiffError(f"{place}: holds control characters; remove them")
    return prompt
