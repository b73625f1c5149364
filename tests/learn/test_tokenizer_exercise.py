"""Chapter 9's solution against `learn_merges`."""

import numpy as np

from minidiff.learn.chapters.tokenizer import EXERCISES, five_merges
from minidiff.models.bpe import learn_merges

(MERGES,) = EXERCISES


def test_the_merges_are_learn_merges_s():
    for seed in range(20):
        for (words,) in MERGES.inputs(np.random.default_rng(seed)):
            assert five_merges(words) == [" ".join(pair) for pair in learn_merges([" ".join(words)], 5)]
