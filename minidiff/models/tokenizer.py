"""CLIP's tokenizer: byte-pair encoding of a text into token ids (Radford et al. 2021, section 2.4).

Byte-pair encoding is Sennrich et al. 2016 (arXiv:1508.07909), over bytes as in GPT-2. The text is normalised and split
into words. A word starts as its bytes, the last marked with </w>; then the adjacent pair with the lowest merge rank is
merged, repeatedly, until no adjacent pair has a merge. Every text can be encoded: rare words fall back to bytes.

    "A black  cat!" -> "a black cat!" -> a, black, cat, ! -> a</w>, black</w>, cat</w>, !</w> -> 320, 1449, 2368, 256

Python's Unicode database (`unicodedata.unidata_version`) decides which characters are letters and digits.
"""

import copy
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np

END = "</w>"  # suffix of the last token of a word
BOS, EOS = "<|startoftext|>", "<|endoftext|>"

SPACE = re.compile(r"[^\S\x1c-\x1f]+")  # Unicode white space: Python's \s without the separators U+001C to U+001F
SPECIAL = re.compile(r"(<\|)(startoftext|endoftext)(\|>)|('s|'t|'re|'ve|'m|'ll|'d)")
RUN = re.compile(r"L+|N|[^LN ]+")  # in a string of categories: letters, one digit, other characters


def bytes_to_unicode() -> list[str]:
    """A printable character for each of the 256 bytes, as in GPT-2: Latin-1's own, or one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    code_points = dict(zip(printable + others, [*printable, *range(256, 256 + len(others))], strict=True))
    return [chr(code_points[byte]) for byte in range(256)]


def vocabulary(merges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Token -> id in CLIP's order: bytes, bytes that end a word, one token per merge, start and end of text."""
    characters = sorted(bytes_to_unicode())
    tokens = [*characters, *(c + END for c in characters), *(a + b for a, b in merges), BOS, EOS]
    return {token: i for i, token in enumerate(tokens)}


def normalize(text: str) -> str:
    """Unicode NFC, every run of white space as one space, lower case character by character."""
    text = SPACE.sub(" ", unicodedata.normalize("NFC", text))
    return "".join(map(str.lower, text))  # by character: str.lower of a whole text maps a final capital sigma to ς


def words(text: str) -> Iterator[str]:
    """Split normalised text into 's 't 're 've 'm 'll 'd, runs of letters, single digits, runs of other characters."""
    categories = "".join(map(_category, text))
    start = 0
    while start < len(text):
        special = SPECIAL.match(text, start)
        match = special or RUN.match(categories, start)
        if special:
            yield from filter(None, special.groups())
        elif match:
            yield text[start : match.end()]
        start = match.end() if match else start + 1


def _category(character: str) -> str:
    """L for letters, N for numbers, a space for white space, . for other characters."""
    category = unicodedata.category(character)[0]
    return category if category in "LN" else " " if SPACE.match(character) else "."


@dataclass(frozen=True)
class Special:
    """Special tokens.

    bos, eos     start and end of text
    unk          for tokens that are not in the vocabulary
    pad          padding
    after_clean  those matched in the normalised text, so regardless of case; the others are matched in the raw text
    """

    bos: str = BOS
    eos: str = EOS
    unk: str = EOS
    pad: str = EOS
    after_clean: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """All of them."""
        return frozenset((self.bos, self.eos, self.unk, self.pad))


class Tokenizer:
    """ids = tokenizer(texts): (N, length) int64; each row is bos, the text's ids, eos, then padding.

    vocab     token -> id
    merges    pairs of tokens in the order learned
    special   see `Special`; where a text contains a special token, it is encoded as that token
    length    of a row; longer texts are truncated and still end with eos
    `words` are added ones, with their ids (`with_words`).
    Raises ValueError if a special token is not in the vocabulary or length is below 2.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Iterable[tuple[str, str]],
        special: Special | None = None,
        length: int = 77,
    ):
        special = Special() if special is None else special
        self.vocab: dict[str, int] = dict(vocab)
        self.special = special
        self.length = length
        self.ranks: dict[tuple[str, str], int] = {pair: rank for rank, pair in enumerate(merges)}
        self.characters: list[str] = bytes_to_unicode()
        self.words: dict[str, list[int]] = {}
        missing = sorted(special.names - self.vocab.keys())
        if missing:
            raise ValueError(f"special token {missing[0]!r:.80} is not in the vocabulary")
        if length < 2:
            raise ValueError(f"length is {length}: give at least 2, for the start and end tokens")
        self.raw_special: re.Pattern[str] = _any_of(special.names - special.after_clean)
        self.normalized_special: re.Pattern[str] = _any_of(special.names & special.after_clean)

    def __call__(self, texts: list[str]) -> np.ndarray:
        rows = [self.row(self.encode(text)[: self.length - 2]) for text in texts]
        return np.array(rows, np.int64).reshape(-1, self.length)  # (N, length)

    def row(self, ids: list[int]) -> np.ndarray:
        """At most length - 2 ids between start and end token, then padding: (length,) int64."""
        row = np.full(self.length, self.vocab[self.special.pad], np.int64)
        row[: len(ids) + 2] = [self.vocab[self.special.bos], *ids, self.vocab[self.special.eos]]
        return row

    def with_words(self, words: Mapping[str, Sequence[int]]) -> Self:
        """A copy that knows more words: wherever a text contains one, in either case, it is encoded as its ids.

        In the text as normalised, the longest match counts, even within a word, as of tokens added in transformers.
        """
        tokenizer = copy.copy(self)
        tokenizer.words = self.words | {normalize(word): list(ids) for word, ids in words.items()}
        tokenizer.normalized_special = _any_of({*self.special.names & self.special.after_clean, *tokenizer.words})
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """All token ids of a text, not truncated, without start, end and padding."""
        ids = []
        for piece in self.raw_special.split(text):
            if self.raw_special.fullmatch(piece):
                ids += self._ids([piece])
                continue
            for part in self.normalized_special.split(normalize(piece)):
                special = self.normalized_special.fullmatch(part)
                ids += self.words.get(part) or self._ids([part] if special else self._tokenize(part))
        return ids

    def _ids(self, tokens: Iterable[str]) -> list[int]:
        return [self.vocab.get(token, self.vocab[self.special.unk]) for token in tokens]

    def decode(self, ids: Iterable[int]) -> str:
        """The normalised text of token ids, words separated by spaces. Raises KeyError for an unknown id."""
        tokens = {i: token for token, i in self.vocab.items()}
        for word, added in self.words.items():
            tokens |= {i: f"{word}_{k}{END}" if k else f"{word}{END}" for k, i in enumerate(added)}
        byte_of = {c: byte for byte, c in enumerate(self.characters)}
        text = "".join(tokens[i] for i in ids).replace(END, " ")
        encoded = bytes(b for c in text for b in ([byte_of[c]] if c in byte_of else c.encode()))
        return encoded.decode(errors="replace").strip()

    def _tokenize(self, text: str) -> Iterator[str]:
        for word in words(text):
            yield from self._merge_all(byte_tokens(word, self.characters))

    def _merge_all(self, tokens: list[str]) -> list[str]:
        """The tokens of a word after all merges, from its byte tokens."""
        while len(tokens) > 1:
            pair = min(pairwise(tokens), key=lambda pair: self.ranks.get(pair, math.inf))
            if pair not in self.ranks:
                break
            tokens = merge(tokens, pair)
        return tokens


def byte_tokens(word: str, characters: list[str]) -> list[str]:
    """A word as one token per byte, the last with </w>; a lone surrogate becomes a question mark."""
    *first, last = [characters[byte] for byte in word.encode(errors="replace")]
    return [*first, last + END]


def merge(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    """The tokens of a word with every adjacent occurrence of the pair merged, from left to right."""
    merged: list[str] = []
    i = 0
    while i < len(tokens):
        count = 2 if (*tokens[i : i + 2],) == pair else 1
        merged.append("".join(tokens[i : i + count]))
        i += count
    return merged


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches any of these, longest first; its `split` returns them and the text between."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else r"(?!)")
