"""Seeds and the source of noise: lists of seeds, and noise that belongs to a seed and not to a batch."""

import numpy as np
import pytest
from small_runs import refused

from minidiff.engine.torch_generator import torch_generator
from minidiff.sampling.inputs import MAX_SEEDS, NoiseOfEach, parse_seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0-3", [0, 1, 2, 3]), ("3,7,10-12", [3, 7, 10, 11, 12]), ("7", [7]), ("5-5", [5]), (" 4 , 2-3 ", [4, 2, 3])],
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


def test_the_largest_seed_and_the_longest_list():
    assert parse_seeds(f"{2**64 - 1}") == [2**64 - 1]
    assert len(parse_seeds(f"1-{MAX_SEEDS}")) == MAX_SEEDS


@pytest.mark.parametrize(
    "text", ["", ",", "1,", "3-1", "-1", "a", "1-2-3", "1.5", "1 2", "\u0663", str(2**64), "9" * 30]
)
def test_what_is_no_list_of_seeds(text):
    refused(parse_seeds, text, match="^--seeds .*: give numbers and rising ranges, such as 0-63 or 3,7,10-12$")


def test_seeds_that_are_too_many_or_given_twice():
    for text in (f"0-{MAX_SEEDS}", f"7,1000-{MAX_SEEDS + 1000}", f"0-{2**64 - 1}"):
        refused(parse_seeds, text, match="lists more than 100000 seeds; sample them in parts")
    refused(parse_seeds, "1,0-3", match="lists a seed twice; give each once")


@pytest.mark.parametrize(("noise", "generator"), [("numpy", np.random.default_rng), ("torch", torch_generator)])
def test_the_noise_of_each_is_that_of_its_seed_alone(noise, generator):
    """In every draw, whatever the others are; a batch of one has the noise that its generator alone gives."""
    both, other = NoiseOfEach(noise, [3, 8]), NoiseOfEach(noise, [8, 5, 3])
    alone = generator(8)
    for _ in range(3):
        a, b = (rng.standard_normal((n, 4, 6, 3), dtype=np.float32) for rng, n in ((both, 2), (other, 3)))
        assert a.dtype == np.float32 and a.shape == (2, 4, 6, 3)
        np.testing.assert_array_equal(a, b[[2, 0]])
        np.testing.assert_array_equal(a[1:], alone.standard_normal((1, 4, 6, 3), dtype=np.float32))
        assert np.abs(a[0] - a[1]).mean() > 0.5
