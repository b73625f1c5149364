"""Merges against algorithm 1 of Sennrich et al. done literally: count all pairs anew for each merge."""

import random
from collections import Counter
from itertools import pairwise

import pytest

from minidiff.models.bpe import learn_merges
from minidiff.models.tokenizer import END, Tokenizer, byte_letters, cleaned, joined, vocabulary, words


def naive(captions, size):
    letters = byte_letters()
    texts = []
    for caption in captions:
        for word in words(cleaned(caption)):
            parts = [letters[byte] for byte in word.encode()]
            texts.append([*parts[:-1], parts[-1] + END])
    merges = []
    while len(merges) < size:
        counts = Counter(pair for parts in texts for pair in pairwise(parts))
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            break
        merges.append(best)
        texts = [joined(parts, best) for parts in texts]
    return merges


@pytest.mark.parametrize("seed", range(40))
def test_as_counted_anew_for_each_merge(seed):
    rng = random.Random(seed)
    letters = "abc é"[
        : rng.randint(1, 5)
    ]  # few, so that words repeat themselves: "aaaa" has three pairs and room for two
    captions = ["".join(rng.choices(letters, k=rng.randint(1, 30))) for _ in range(rng.randint(1, 20))]
    size = rng.choice((0, 5, 1000))
    assert learn_merges(captions, size) == naive(captions, size)


def test_the_commonest_first_and_of_equals_the_first_by_name():
    # ca and at</w> stand three times each; when c and at</w> are one, nothing else is there twice but the dog
    assert learn_merges(["cat cat", "dog Cat", "dog"], 100) == [
        ("a", "t</w>"), ("c", "at</w>"), ("d", "o"), ("do", "g</w>"),
    ]  # fmt: skip
    assert learn_merges(["cat cat", "dog Cat", "dog"], 1) == [("a", "t</w>")]


def test_nothing_to_learn():
    assert learn_merges([], 10) == learn_merges(["", " "], 10) == learn_merges(["cat", "dog"], 10) == []


def test_neighbours_from_left_to_right():
    assert joined(["a", "a", "a"], ("a", "a")) == ["aa", "a"]
    assert joined(["b", "a", "b", "a", "b"], ("a", "b")) == ["b", "ab", "ab"]
    assert joined(["ab", "c"], ("a", "bc")) == ["ab", "c"]


def test_what_was_learned_of_is_short():
    """A word that stands twice is one token, and every text has its way back."""
    captions = ["a grey cat asleep", "a grey dog asleep", "a cat and a dog"]
    merges = learn_merges(captions, 1000)
    tokenizer = Tokenizer(vocabulary(merges), merges)
    assert len(tokenizer.vocab) == 514 + len(merges)
    assert [len(tokenizer.encode(caption)) for caption in captions] == [4, 4, 4 + len("and")]
    assert tokenizer.decode(tokenizer.encode("A zebra, 日本")) == "a zebra , 日本"
