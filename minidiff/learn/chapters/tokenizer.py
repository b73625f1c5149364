"""The exercise of chapter 9: byte-pair encoding."""

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np

from minidiff.learn.exercise import Exercise
from minidiff.models.tokenizer import END, merge


def five_merges(words: list[str]) -> list[str]:
    """The first five merges of byte-pair encoding (Sennrich et al. 2016, algorithm 1).

    At first every letter is a token, and the last letter of a word has the suffix </w>. Five times, the adjacent pair
    of tokens that is most frequent in all words becomes one token wherever it stands; of several most frequent pairs
    (left, right), the first in Python's order of tuples. `minidiff.models.tokenizer.merge(tokens, pair)` returns the
    tokens of one word after a merge.

    words  all words of a text in lower-case ASCII, each as often as it occurs

    Returns five strings "left right", the lines of a merges.txt.
    """
    return _merges([[*word[:-1], word[-1] + END] for word in words])


def _merges(texts: list[list[str]], first_in_order: bool = True) -> list[str]:
    merges = []
    for _ in range(5):
        counts = Counter(pair for tokens in texts for pair in pairwise(tokens))
        most = max(counts.values())
        pairs = [pair for pair in counts if counts[pair] == most]
        pair = min(pairs) if first_in_order else max(pairs)
        merges.append(" ".join(pair))
        texts = [merge(tokens, pair) for tokens in texts]
    return merges


def _distinct_words(words: list[str]) -> list[str]:
    """Each distinct word is counted once: a pair in a word that occurs three times counts three times."""
    return five_merges(list(dict.fromkeys(words)))


def _counted_once(words: list[str]) -> list[str]:
    """All five pairs come from the same counts: apply each merge to the words, then count again."""
    counts = Counter(pair for word in words for pair in pairwise([*word[:-1], word[-1] + END]))
    return [" ".join(pair) for pair in sorted(counts, key=lambda pair: (-counts[pair], pair))[:5]]


def _without_end(words: list[str]) -> list[str]:
    """The last letter of each word lacks its suffix: "at" within a word and "at</w>" at its end are two tokens."""
    return _merges([list(word) for word in words])


def _last_in_order(words: list[str]) -> list[str]:
    """Of pairs with the same count another one is merged: take the first in Python's order of tuples."""
    return _merges([[*word[:-1], word[-1] + END] for word in words], first_in_order=False)


def _texts(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    """Six texts of a few words, some of them often; small counts tie now and then."""
    nouns = ["cat", "hat", "bat", "goat", "that", "star", "cart", "tart", "panda", "banana", "otter", "letter"]
    texts = []
    for _ in range(6):
        counts = zip(rng.permutation(nouns)[:6].tolist(), rng.integers(1, 5, 6), strict=True)
        texts.append((rng.permutation([noun for noun, n in counts for _ in range(n)]).tolist(),))
    return texts


EXERCISES = (
    Exercise("Five merges", 9, five_merges, _texts, (_distinct_words, _counted_once, _without_end, _last_in_order)),
)
