"""The files of a CLIP tokenizer: tokenizer.json, or vocab.json and merges.txt, or OpenAI's list of merges alone."""

import gzip
import zlib
from pathlib import Path
from typing import Any

from minidiff.errors import MinidiffError
from minidiff.files import LARGEST_JSON, read_json, replace_file, write_json
from minidiff.models.tokenizer import BOS, EOS, Special, Tokenizer, vocabulary

MERGES = 49152 - 256 - 2  # the merges of OpenAI's list that CLIP uses
LONGEST = 77  # default number of tokens; transformers writes 10^30 for none

Merges = list[tuple[str, str]]


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a folder, or of the file bpe_simple_vocab_16e6.txt.gz.

    tokenizer_config.json or special_tokens_map.json, if present, name the begin, end, unknown and padding tokens.
    Raises MinidiffError for files that are missing, damaged, or contradict one another.
    """
    path = Path(path)
    if path.is_file():
        merges = _openai_merges(path)
        return Tokenizer(vocabulary(merges), merges)
    settings = _settings(path)
    if (path / "tokenizer.json").is_file():
        vocab, merges, after_clean = read_json(path / "tokenizer.json", _parse_tokenizer_json)
    elif (path / "vocab.json").is_file():
        vocab, merges = read_json(path / "vocab.json", _vocab), _merges_txt(path / "merges.txt")
        after_clean = frozenset(v["content"] for v in settings.values() if _is_token(v) and v.get("normalized") is True)
    else:
        raise MinidiffError(f"{path}: no tokenizer.json and no vocab.json here; copy the folder again")
    names = {name: _content(settings.get(f"{name}_token", default)) for name, default in DEFAULTS.items()}
    length = settings.get("model_max_length", LONGEST)
    try:
        length = LONGEST if type(length) not in (int, float) or length > 1e6 else int(length)
        return Tokenizer(vocab, merges, Special(**names, after_clean=after_clean), length)
    except (ValueError, OverflowError) as error:  # the second of an infinite length
        raise MinidiffError(f"{path}: {error}; copy the folder again") from None


def clip_tokenizer(pad: str = EOS) -> Tokenizer:
    """CLIP's tokenizer, of the merges in clip_merges.txt.gz; pad: the token that fills texts up."""
    merges = _openai_merges(Path(__file__).with_name("clip_merges.txt.gz"))
    return Tokenizer(vocabulary(merges), merges, Special(pad=pad))


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json, as transformers reads them."""
    folder, special = Path(folder), tokenizer.special
    plain = dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    names = {f"{name}_token": getattr(special, name) for name in DEFAULTS}
    marked = {
        k: {"content": v, "normalized": True, **plain} if v in special.after_clean else v for k, v in names.items()
    }
    write_json(folder / "vocab.json", tokenizer.vocab)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in tokenizer.ranks)]
    replace_file(folder / "merges.txt", lambda part: part.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.length}
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", marked)


DEFAULTS = {"bos": BOS, "eos": EOS, "unk": EOS, "pad": EOS}


def _settings(folder: Path) -> dict[str, Any]:
    settings = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= read_json(folder / name, _keys_and_values)
    return settings


def _keys_and_values(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise MinidiffError("must be a JSON object")
    return values


def _is_token(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("content"), str)


def _content(token: Any) -> str:
    return token["content"] if _is_token(token) else str(token)


def _vocab(values: Any) -> dict[str, int]:
    if not isinstance(values, dict) or not values or not all(type(i) is int and i >= 0 for i in values.values()):
        raise MinidiffError("must map tokens to ids")
    if len(set(values.values())) < len(values):
        raise MinidiffError("gives two tokens one id")
    return values


def _pairs(values: Any) -> Merges:
    """Merges from lists of two tokens, or strings of two tokens with a space between."""
    if not isinstance(values, list):
        raise MinidiffError("must have a list of merges")
    return [_pair(value.split(" ") if isinstance(value, str) else value) for value in values]


def _pair(value: Any) -> tuple[str, str]:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(token, str) and token for token in value):
        raise MinidiffError(f"has the merge {value!r:.80}, which is not a pair of tokens")
    return value[0], value[1]


def _parse_tokenizer_json(values: Any) -> tuple[dict[str, int], Merges, frozenset[str]]:
    model = _keys_and_values(values).get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise MinidiffError("is not a byte-pair encoding; only CLIP's tokenizer is supported")
    added = [token for token in values.get("added_tokens", []) if _is_token(token)]
    after_clean = frozenset(token["content"] for token in added if token.get("normalized") is True)
    return _vocab(model.get("vocab")), _pairs(model.get("merges")), after_clean


def _merges_txt(path: Path) -> Merges:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError("larger than any list of merges")
        _, *lines = path.read_text(encoding="utf-8").splitlines()
        return _pairs([line for line in lines if line])
    except OSError as error:
        raise MinidiffError(f"{path}: {error.strerror}; copy it again") from None
    except (ValueError, MinidiffError) as error:
        raise MinidiffError(f"{path}: {error}; copy it again") from None


def _openai_merges(path: Path) -> Merges:
    try:
        with gzip.open(path) as file:
            _, *lines = file.read(LARGEST_JSON).decode().split("\n")
        if not lines:
            raise ValueError("it is empty")
        return _pairs([line for line in lines[:MERGES] if line])
    except (OSError, EOFError, ValueError, zlib.error, MinidiffError) as error:
        raise MinidiffError(f"{path}: is no list of merges ({error}); copy it again") from None
