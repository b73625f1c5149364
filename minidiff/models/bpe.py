"""Learns byte-pair encoding: repeatedly merges the most frequent adjacent pair (Sennrich et al. 2016, algorithm 1).

Learned from a dataset's captions, it gives a small vocabulary for them:

    merges = learn_merges(captions, 1000)
    tokenizer = Tokenizer(vocabulary(merges), merges)
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

from minidiff.models.tokenizer import byte_tokens, bytes_to_unicode, merge, normalize, words

Pair = tuple[str, str]


class PairCounts:
    """How often each adjacent pair of tokens occurs in a text, updated incrementally with each merge."""

    def __init__(self, captions: Iterable[str]):
        characters = bytes_to_unicode()
        word_counts = Counter(word for caption in captions for word in words(normalize(caption)))
        self.tokens = [byte_tokens(word, characters) for word in word_counts]  # of every distinct word
        self.frequencies = list(word_counts.values())
        self.counts: Counter[Pair] = Counter()
        self.words_with: defaultdict[Pair, set[int]] = defaultdict(set)  # may list words that had the pair earlier
        for i, tokens in enumerate(self.tokens):
            for pair in pairwise(tokens):
                self.counts[pair] += self.frequencies[i]
                self.words_with[pair].add(i)

    def apply_merge(self, pair: Pair) -> set[Pair]:
        """Merge a pair in all words that contain it; returns the pairs whose counts may have changed."""
        changed: set[Pair] = set()
        for i in self.words_with.pop(pair):
            for old in pairwise(self.tokens[i]):
                self.counts[old] -= self.frequencies[i]
                changed.add(old)
            self.tokens[i] = merge(self.tokens[i], pair)
            for new in pairwise(self.tokens[i]):
                self.counts[new] += self.frequencies[i]
                self.words_with[new].add(i)
                changed.add(new)
        return changed


def learn_merges(captions: Iterable[str], size: int) -> list[tuple[str, str]]:
    """At most `size` merges, each of the pair that is most frequent by then; ties go to the first in string order.

    Stops early when no pair occurs twice.
    """
    pairs = PairCounts(captions)
    heap = [(-count, pair) for pair, count in pairs.counts.items()]  # entries with outdated counts are skipped below
    heapq.heapify(heap)
    merges: list[tuple[str, str]] = []
    while len(merges) < size and heap:
        negative_count, pair = heapq.heappop(heap)
        if -negative_count != pairs.counts[pair]:
            continue
        if -negative_count < 2:
            break
        merges.append(pair)
        for changed in pairs.apply_merge(pair):
            heapq.heappush(heap, (-pairs.counts[changed], changed))
    return merges
