"""CLIP's tokenizer: a text becomes numbers, one for every piece of a word (Radford et al. 2021, section 2.4).

Byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909, algorithm 1; over bytes as in GPT-2). A word is a row of
bytes, the last of them marked with </w>. Then the two neighbours whose merge was learned first become one, again and
again, until no merge is left that was learned. So every text has its numbers: what is rare falls into bytes.

    "A black  cat!" -> "a black cat!" -> a, black, cat, ! -> a</w>, black</w>, cat</w>, !</w> -> 320, 1449, 2368, 256

Which characters are letters is Python's knowledge of Unicode (`unicodedata.unidata_version`).
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

END = "</w>"  # marks the last byte of a word
BOS, EOS = "<|startoftext|>", "<|endoftext|>"

SPACE = re.compile(r"[^\S\x1c-\x1f]+")  # Unicode's white space; Python counts four separators of files to it
SPECIAL = re.compile(r"(<\|)(startoftext|endoftext)(\|>)|('s|'t|'re|'ve|'m|'ll|'d)")
RUN = re.compile(r"L+|N|[^LN ]+")  # in a text of kinds: a word, a digit, signs


def byte_letters() -> list[str]:
    """A character that can be seen for each of the 256 bytes: its own of Latin-1, or one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = [byte for byte in range(256) if byte not in seen]
    letters = dict(zip(seen + unseen, [*seen, *range(256, 256 + len(unseen))], strict=True))
    return [chr(letters[byte]) for byte in range(256)]


def vocabulary(merges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """The numbers of CLIP's tokens: bytes, bytes that end a word, what each merge makes, start and end of a text."""
    letters = sorted(byte_letters())
    tokens = [*letters, *(letter + END for letter in letters), *(a + b for a, b in merges), BOS, EOS]
    return {token: i for i, token in enumerate(tokens)}


def cleaned(text: str) -> str:
    """Composed characters (NFC), every run of white space one space, lower case letter by letter."""
    text = SPACE.sub(" ", unicodedata.normalize("NFC", text))
    return "".join(map(str.lower, text))  # letter by letter: a sigma at a word's end stays a sigma


def words(text: str) -> Iterator[str]:
    """A clean text cut into 's 't 're 've 'm 'll 'd, runs of letters, single digits, and runs of other signs."""
    kinds = "".join(map(_kind, text))
    at = 0
    while at < len(text):
        special = SPECIAL.match(text, at)
        found = special or RUN.match(kinds, at)
        if special:
            yield from filter(None, special.groups())
        elif found:
            yield text[at : found.end()]
        at = found.end() if found else at + 1


def _kind(character: str) -> str:
    """L for letters, N for digits and numbers, a space, or . for all else."""
    category = unicodedata.category(character)[0]
    return category if category in "LN" else " " if SPACE.match(character) else "."


@dataclass(frozen=True)
class Special:
    """The tokens that stand for no text.

    bos, eos     begin and end every text
    unk          stands for a byte that the vocabulary does not have
    pad          fills up what is shorter than all others
    after_clean  those that are looked for in the clean text, so in capitals too; the others in the text as it is
    """

    bos: str = BOS
    eos: str = EOS
    unk: str = EOS
    pad: str = EOS
    after_clean: frozenset[str] = frozenset()


class Tokenizer:
    """ids = tokenizer(texts): (N, length) int64, which start with bos, end with eos, and are filled up with pad.

    vocab     the number of every token
    merges    pairs of tokens, the one learned first in front
    special   see `Special`; a text may hold them, and then they are those tokens
    length    of all rows; what is longer is cut, and eos stands last
    Raises ValueError for special tokens that the vocabulary lacks, and a length below 2.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Iterable[tuple[str, str]],
        special: Special | None = None,
        length: int = 77,
    ):
        special = Special() if special is None else special
        self.vocab, self.special, self.length = dict(vocab), special, length
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.letters = byte_letters()
        names = {special.bos, special.eos, special.unk, special.pad}
        missing = sorted(names - self.vocab.keys())
        if missing:
            raise ValueError(f"the vocabulary has no {missing[0]!r:.80}")
        if length < 2:
            raise ValueError(f"a length of {length} has no room for the start and the end")
        self.as_it_is = _any_of(names - special.after_clean)
        self.in_clean = _any_of(names & special.after_clean)

    def __call__(self, texts: list[str]) -> np.ndarray:
        ids = np.full((len(texts), self.length), self.vocab[self.special.pad], np.int64)
        for row, text in zip(ids, texts, strict=True):
            inner = self.encode(text)[: self.length - 2]
            row[: len(inner) + 2] = [self.vocab[self.special.bos], *inner, self.vocab[self.special.eos]]
        return ids  # (N, length)

    def encode(self, text: str) -> list[int]:
        """All numbers of a text, without start and end, however many."""
        tokens = []
        for piece in self.as_it_is.split(text):
            if self.as_it_is.fullmatch(piece):
                tokens.append(piece)
                continue
            for part in self.in_clean.split(cleaned(piece)):
                tokens += [part] if self.in_clean.fullmatch(part) else self._pieces(part)
        return [self.vocab.get(token, self.vocab[self.special.unk]) for token in tokens]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of numbers, clean and with a space behind every word. Raises KeyError for a number that is none."""
        tokens, byte = {i: token for token, i in self.vocab.items()}, {c: i for i, c in enumerate(self.letters)}
        text = "".join(tokens[i] for i in ids).replace(END, " ")
        return bytes(b for c in text for b in ([byte[c]] if c in byte else c.encode())).decode(errors="replace").strip()

    def cut(self, text: str) -> list[int]:
        """The tokens at the end of a text for which its row has no room; none if it fits."""
        return self.encode(text)[self.length - 2 :]

    def _pieces(self, text: str) -> Iterator[str]:
        for word in words(text):
            yield from self._merged(pieces(word, self.letters))

    def _merged(self, parts: list[str]) -> list[str]:
        """The tokens of a word, from its bytes."""
        while len(parts) > 1:
            pair = min(pairwise(parts), key=lambda pair: self.ranks.get(pair, math.inf))
            if pair not in self.ranks:
                break
            parts = joined(parts, pair)
        return parts


def pieces(word: str, letters: list[str]) -> list[str]:
    """A word as the letters of its bytes, the last of them marked; half a surrogate pair becomes a question mark."""
    *first, last = [letters[byte] for byte in word.encode(errors="replace")]
    return [*first, last + END]


def joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """The parts of a word after a merge: from left to right, wherever the pair are neighbours, they are one."""
    found, at = [], 0
    while at < len(parts):
        width = 2 if (*parts[at : at + 2],) == pair else 1
        found.append("".join(parts[at : at + width]))
        at += width
    return found


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """What finds any of these in a text, the longest one first; `split` then gives them and what is between."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else r"(?!)")
