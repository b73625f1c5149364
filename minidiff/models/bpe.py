"""Byte-pair encoding, learned: which neighbours become one, the commonest first (Sennrich et al. 2016, algorithm 1).

From one's own captions comes a small vocabulary that fits them:

    merges = learn_merges(captions, 1000)
    tokenizer = Tokenizer(vocabulary(merges), merges)
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

from minidiff.models.tokenizer import byte_letters, cleaned, joined, pieces, words


def learn_merges(captions: Iterable[str], size: int) -> list[tuple[str, str]]:
    """At most `size` merges, each of the commonest pair of neighbours there is by then; of equals, the first by name.

    It ends early where no pair stands twice. Only the words that hold a pair are looked at when it is merged.
    """
    letters = byte_letters()
    counts = Counter(word for caption in captions for word in words(cleaned(caption)))
    texts, times = [pieces(word, letters) for word in counts], list(counts.values())
    common: Counter[tuple[str, str]] = Counter()
    holders = defaultdict(set)  # pair -> the numbers of the words that hold it, or did so once
    for i, parts in enumerate(texts):
        for pair in pairwise(parts):
            common[pair] += times[i]
            holders[pair].add(i)
    order = [(-count, pair) for pair, count in common.items()]  # a heap; counts that have changed since are passed over
    heapq.heapify(order)

    merges: list[tuple[str, str]] = []
    while len(merges) < size and order:
        count, best = heapq.heappop(order)
        if -count != common[best]:
            continue
        if -count < 2:
            break
        merges.append(best)
        changed = set()
        for i in holders.pop(best):
            for pair in pairwise(texts[i]):
                common[pair] -= times[i]
                changed.add(pair)
            texts[i] = joined(texts[i], best)
            for pair in pairwise(texts[i]):
                common[pair] += times[i]
                holders[pair].add(i)
                changed.add(pair)
        for pair in changed:
            heapq.heappush(order, (-common[pair], pair))
    return merges
