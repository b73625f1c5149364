"""learn_merges against algorithm 1 of Sennrich et al. done literally: all pairs are recounted for each merge."""

import random
from collections import Counter
from itertools import pairwise

import pytest

from minidiff.models.bpe import learn_merges
from minidiff.models.tokenizer import END, Tokenizer, bytes_to_unicode, merge, normalize, vocabulary, words


def naive(captions, size):
    characters = bytes_to_unicode()
    tokenized = []
    for caption in captions:
        for word in words(normalize(caption)):
            tokens = [characters[byte] for byte in word.encode()]
            tokenized.append([*tokens[:-1], tokens[-1] + END])
    merges = []
    while len(merges) < size:
        counts = Counter(pair for tokens in tokenized for pair in pairwise(tokens))
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            break
        merges.append(best)
        tokenized = [merge(tokens, best) for tokens in tokenized]
    return merges


@pytest.mark.parametrize("seed", range(40))
def test_merges_equal_the_naive_algorithm_s(seed):
    rng = random.Random(seed)
    letters = "abc é"[: rng.randint(1, 5)]  # few, so that pairs repeat and overlap, as in "aaaa"
    captions = ["".join(rng.choices(letters, k=rng.randint(1, 30))) for _ in range(rng.randint(1, 20))]
    size = rng.choice((0, 5, 1000))
    assert learn_merges(captions, size) == naive(captions, size)


def test_the_most_frequent_pair_first_and_ties_in_string_order():
    # (a, t</w>) and (c, a) occur three times each, so the tie goes to the first in string order
    assert learn_merges(["cat cat", "dog Cat", "dog"], 100) == [
        ("a", "t</w>"), ("c", "at</w>"), ("d", "o"), ("do", "g</w>"),
    ]  # fmt: skip
    assert learn_merges(["cat cat", "dog Cat", "dog"], 1) == [("a", "t</w>")]


def test_nothing_to_learn():
    assert learn_merges([], 10) == learn_merges(["", " "], 10) == learn_merges(["cat", "dog"], 10) == []


def test_merge_goes_from_left_to_right():
    assert merge(["a", "a", "a"], ("a", "a")) == ["aa", "a"]
    assert merge(["b", "a", "b", "a", "b"], ("a", "b")) == ["b", "ab", "ab"]
    assert merge(["ab", "c"], ("a", "bc")) == ["ab", "c"]


def test_a_learned_tokenizer():
    """A word that occurs twice is one token, and decode reverses encode."""
    captions = ["a grey cat asleep", "a grey dog asleep", "a cat and a dog"]
    merges = learn_merges(captions, 1000)
    tokenizer = Tokenizer(vocabulary(merges), merges)
    assert len(tokenizer.vocab) == 514 + len(merges)
    assert [len(tokenizer.encode(caption)) for caption in captions] == [4, 4, 4 + len("and")]
    assert tokenizer.decode(tokenizer.encode("A zebra, 日本")) == "a zebra , 日本"
