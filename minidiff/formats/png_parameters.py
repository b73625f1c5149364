"""The "parameters" of PNG files: prompts, negative prompt and settings of a sampled image, in one text chunk.

The text has the form of AUTOMATIC1111's web UI, which image viewers show:

    a black cat
    Negative prompt: blurred
    Steps: 25, Sampler: ddim, CFG scale: 7.5, Seed: 1, Size: 512x512, Model: sd15, Version: minidiff 0.1.0

Several prompts have a line each, and their number among the settings. A model that takes no prompt has an empty first
line and no negative prompt.
"""

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from minidiff.data.imaging import PARAMETERS
from minidiff.errors import MinidiffError

NEGATIVE = "Negative prompt:"
PROMPTS = "Prompts"  # the setting that counts several prompts
LONGEST = 65536  # characters of a text that is read
SETTING = re.compile(r'\s*(\w[\w /-]{1,40}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')  # key: value, key: "a, quoted value"


@dataclass(frozen=True)
class Parameters:
    """What an image was sampled with.

    settings  key -> value, both as text
    prompts   () for a model that takes none
    """

    settings: dict[str, str]
    prompts: tuple[str, ...] = ()
    negative: str = ""

    def __str__(self) -> str:
        several = {PROMPTS: str(len(self.prompts))} if len(self.prompts) > 1 else {}
        lines = [*map(_one_line, self.prompts), f"{NEGATIVE} {_one_line(self.negative)}"] if self.prompts else [""]
        return "\n".join([*lines, ", ".join(f"{k}: {_quoted(v)}" for k, v in (self.settings | several).items())])


def parse(text: str) -> Parameters:
    """The parameters of a text. Raises MinidiffError if it is not in the form above, or longer than LONGEST."""
    if len(text) > LONGEST:
        raise MinidiffError(f"its parameters have {len(text)} characters, more than {LONGEST}")
    if any(ord(character) < 32 and character not in "\t\r\n" for character in text):
        raise MinidiffError("its parameters hold control characters")
    *lines, last = text.rstrip().split("\n")
    settings = {key: _unquoted(value) for key, value in SETTING.findall(last)}
    if "Steps" not in settings:
        raise MinidiffError('its parameters do not end with a line of settings, "Steps: 20, Sampler: ddim, ..."')
    begin = max((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), default=None)
    negative = [] if begin is None else lines[begin:]
    prompts = _prompts(lines[:begin], settings.pop(PROMPTS, "1"))
    if begin is None and prompts == ("",):
        prompts = ()
    return Parameters(settings, prompts, _one_line("\n".join(negative).removeprefix(NEGATIVE)).strip())


def read_parameters(path: Path) -> Parameters:
    """The parameters of a PNG file, whose pixels are not read.

    Raises MinidiffError, with the file's name, if it is missing, not a PNG file or without them, and as `parse` does.
    """
    from PIL import Image

    if not path.is_file():
        raise MinidiffError(f"{path}: no such file; give a PNG image that minidiff sample wrote")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG",)) as file:
                text = file.info.get(PARAMETERS)
    except Exception as error:  # decoders raise any error on damaged files: OSError, SyntaxError, ValueError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MinidiffError(f"{path}: cannot be read as a PNG image ({reason}); give another") from error
    if not isinstance(text, str):
        raise MinidiffError(f"{path}: has no parameters; give a PNG image that minidiff sample wrote")
    try:
        return parse(text)
    except MinidiffError as error:
        raise MinidiffError(f"{path}: {error}; give a PNG image that minidiff sample wrote") from None


def _prompts(lines: list[str], count: str) -> tuple[str, ...]:
    """The prompts of these lines, one of them each if the count says so; otherwise all are one prompt's."""
    if count == "1":
        return (_one_line("\n".join(lines)).strip(),)
    if count != str(len(lines)):
        raise MinidiffError(f"its parameters have {len(lines)} lines of prompts, and count {count:.80}")
    return tuple(lines)


def _one_line(text: str) -> str:
    """With spaces for line breaks, which the tokenizer takes for spaces too."""
    return re.sub(r"[\r\n]+", " ", text)


def _quoted(value: str) -> str:
    """A value as it is, or as a JSON string if it would not be read so."""
    return json.dumps(value, ensure_ascii=False) if re.search(r'^\s|[,:"\n]|\s$', value) else value


def _unquoted(value: str) -> str:
    try:
        return json.loads(value) if value.startswith('"') else value.strip()
    except ValueError:  # a quote without its end
        raise MinidiffError(f"its parameters have the value {value:.80}, which is no string") from None
