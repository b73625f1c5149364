"""Byte-pair encoding, learned: which neighbours become one, the commonest first (Sennrich et al. 2016, algorithm 1)."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from minidiff.models.tokenizer import END, byte_letters, cleaned, words


def learn_merges(captions: Iterable[str], size: int) -> list[tuple[str, str]]:
    """At most `size` merges, each of the commonest pair of neighbours there is by then; of equals, the first by name.

    It ends early where no pair stands twice.
    """
    letters = byte_letters()
    counts = Counter(word for caption in captions for word in words(cleaned(caption)))
    texts = {}
    for word, count in counts.items():
        *first, last = [letters[byte] for byte in word.encode()]
        texts[(*first, last + END)] = count
    merges: list[tuple[str, str]] = []
    while len(merges) < size:
        pairs = Counter()
        for parts, count in texts.items():
            for pair in pairwise(parts):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        merges.append(best)
        texts = {_joined(parts, best): count for parts, count in texts.items()}
    return merges


def _joined(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    if pair not in pairwise(parts):
        return parts
    joined, at = [], 0
    while at < len(parts):
        both = parts[at : at + 2] == pair
        joined.append(parts[at] + parts[at + 1] if both else parts[at])
        at += 2 if both else 1
    return tuple(joined)
