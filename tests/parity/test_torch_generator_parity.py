"""torch_generator against torch.Generator: the same numbers from the same calls, in whatever order they come."""

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import given
from hypothesis import strategies as st

from minidiff import torch_generator

SEEDS = [0, 1, 42, 2**31, 2**32 + 5, 2**63, 2**64 - 1, -1]
SIZES = [*range(1, 101), 1000, 3072]
DTYPES = {np.float32: torch.float32, np.float64: torch.float64}

# Blocks, float32. Normal numbers go up to sqrt(-2 ln 2^-24) = 5.8, where one unit in the last place is 4.8e-7. With
# AVX2 both sides take sine and logarithm of the same float32 numbers. Without it torch rounds the angle, up to 6.3,
# once and not twice: 2.4e-7 for each rounding and 1.7e-7 for 2 pi in float32 are 6.6e-7, times the radius 3.8e-6.
AVX2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
# Blocks, float64: logarithm, root, sine and product, each off by at most four times 1.1e-16, of numbers up to 8.6.
BLOCKS = {np.float32: 5e-7 if AVX2 else 5e-6, np.float64: 2e-14}
# Fewer than sixteen: float64 on both sides, each step off by one unit at most: log1p (of whose error the
# root leaves 1/2), root, sine, product. After rounding to float32 the two may lie on either side of a boundary.
FEW_ULP = {np.float32: 1, np.float64: 6}


class Both:
    """One generator of each library. Every call is made to both and compared."""

    def __init__(self, seed):
        self.ours, self.theirs = torch_generator(seed), torch.Generator("cpu").manual_seed(seed)

    def rand(self, shape, dtype=np.float32):
        want = torch.rand(shape, generator=self.theirs, dtype=DTYPES[dtype]).numpy()
        np.testing.assert_array_equal(self.ours.rand(shape, dtype), want, strict=True)

    def randn(self, shape, dtype=np.float32):
        want = torch.randn(shape, generator=self.theirs, dtype=DTYPES[dtype]).numpy()
        got = self.ours.randn(shape, dtype)
        assert got.shape == want.shape and got.dtype == want.dtype
        if want.size < 16:
            np.testing.assert_array_max_ulp(got, want, FEW_ULP[dtype])
        else:
            np.testing.assert_allclose(got, want, rtol=0, atol=BLOCKS[dtype])

    def randint(self, low, high, shape):
        want = torch.randint(low, high, shape, generator=self.theirs).numpy()
        np.testing.assert_array_equal(self.ours.randint(low, high, shape), want, strict=True)

    def randperm(self, n):
        want = torch.randperm(n, generator=self.theirs).numpy()
        np.testing.assert_array_equal(self.ours.randperm(n), want, strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_size_from_a_fresh_generator(seed, dtype):
    for n in SIZES:
        Both(seed).rand((n,), dtype)
        Both(seed).randn((n,), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_size_one_after_the_other(seed, dtype):
    both = Both(seed)
    for n in SIZES:
        both.randn((n,), dtype)
        both.rand((n,), dtype)


def test_a_million_normal_numbers():
    Both(0).randn((1 << 20,))


@pytest.mark.parametrize("span", [1, 2, 3, 1000, 2**28 - 1, 2**28, 2**28 + 1, 2**32, 2**32 + 1, 2**63 - 1])
@pytest.mark.parametrize("low", [0, -7, -(2**63)])
def test_randint(low, span):
    both = Both(0)
    both.randint(low, low + span, (1000,))
    both.rand((1,))


def test_randint_over_all_of_int64():
    Both(0).randint(-(2**63), 2**63 - 1, (1000,))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 100, 60_000])
def test_randperm(n):
    both = Both(0)
    both.randperm(n)
    both.rand((1,))


shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)  # up to 729 numbers, also none, and a scalar's ()
dtypes = st.sampled_from(list(DTYPES))
int64 = st.integers(-(2**63), 2**63 - 1)
spans = st.tuples(int64, int64).filter(lambda span: span[0] != span[1]).map(sorted)
near_spans = st.tuples(st.integers(-9, 9), st.integers(10, 2**29))
calls = st.one_of(
    st.tuples(st.just("rand"), shapes, dtypes),
    st.tuples(st.just("randn"), shapes, dtypes),
    st.tuples(st.just("randn"), st.integers(1, 15).map(lambda n: (n,)), dtypes),  # leave a number over, or take it
    st.tuples(st.just("randint"), spans | near_spans, shapes).map(lambda call: (call[0], *call[1], call[2])),
    st.tuples(st.just("randperm"), st.integers(0, 50)),
)


@given(st.integers(-(2**63), 2**64 - 1), st.lists(calls, max_size=12))
def test_any_calls_in_any_order(seed, sequence):
    both = Both(seed)
    for name, *arguments in sequence:
        getattr(both, name)(*arguments)
    both.randn((1,))  # the kept normal number is that of torch
    both.rand((1,))  # and both have used as many words


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(1, 1, 2, 3), (2, 8, 8, 3), (3, 7, 5, 4)])  # N, H, W, C
def test_images_are_those_of_randn_tensor(shape, seed):
    N, H, W, C = shape
    ours, theirs = torch_generator(seed), torch.Generator().manual_seed(seed)
    for _ in range(2):
        want = randn_tensor((N, C, H, W), generator=theirs).movedim(1, -1).numpy()
        got = ours.standard_normal(shape, dtype=np.float32)
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=BLOCKS[np.float32])
