"""torch's random numbers without torch, so that sampling starts from the noise of a diffusers pipeline.

torch's CPU generator is the Mersenne Twister (Matsumoto & Nishimura 1998), as is NumPy's RandomState, whose stream
never changes. This module converts its 32-bit words to numbers as torch does. Uniform numbers are words over a power
of two. Normal ones come in pairs (Box & Muller 1958):

    radius = sqrt(-2 ln u1)    theta = 2 pi u2    z1 = radius cos theta    z2 = radius sin theta

for two independent normal numbers are a point in the plane: its angle is uniform, and half its squared radius is
exponential, as is -ln of a uniform number.
"""

import math
from collections.abc import Iterator
from itertools import islice
from numbers import Integral
from operator import index
from typing import Any

import numpy as np

from minidiff.errors import MinidiffError

BITS = {np.dtype(np.float32): 24, np.dtype(np.float64): 53}  # of a uniform number: the significand's
LONG_SPAN = 2**28  # from here on an integer takes two words: modulo one word favours some values by 1/16 or more
LONG_SHUFFLE = 2**32 // 20  # from here on torch uses another algorithm


def torch_generator(seed: int) -> "TorchGenerator":
    """The generator that draws what `torch.Generator("cpu").manual_seed(seed)` draws (verified for torch 2.13).

    seed is from -2^63 to 2^64 - 1, and only its low 32 bits count, as in torch. Raises MinidiffError for another.
    `sample(unet, schedule, shape, torch_generator(0))` starts from the noise of a diffusers pipeline with seed 0.
    """
    if not isinstance(seed, Integral) or not -(2**63) <= seed < 2**64:
        raise MinidiffError(f"seed must be an integer from -2^63 to 2^64 - 1, not {seed!r:.80}")
    return TorchGenerator(np.random.RandomState(int(seed) % 2**32))


class TorchGenerator:
    """torch's CPU generator; each call continues the stream. Made by `torch_generator`.

    rand, randint and randperm are bit-identical to torch's. randn is within 5e-7 of torch's where torch has AVX2;
    without it torch rounds the angle theta in another way, and the difference is 5e-6 at most.
    With standard_normal, integers and random it is an Rng, such as `sample` and `train_step` take.
    """

    def __init__(self, twister: np.random.RandomState):
        self._twister = twister
        self._scalar_normals = self._normals_in_pairs()

    def rand(self, shape: int | tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """Uniform numbers from [0, 1): float32 is the low 24 bits of a word, float64 the low 53 of a long word.

        Raises MinidiffError for another dtype.
        """
        bits = BITS[_checked(dtype)]
        words = self._words(int(np.prod(shape)), long=bits > 32) & (2**bits - 1)
        return (words.astype(dtype) * 2.0**-bits).reshape(shape)

    def randn(self, shape: int | tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """Standard normal numbers, float32 or float64. Raises MinidiffError for another dtype.

        Sixteen or more are computed in blocks of 16; if the last block is not whole, the last 16 are replaced, from 16
        fresh uniform numbers. Fewer than 16 are computed one at a time in float64.
        """
        z = np.empty(shape, _checked(dtype))
        flat, whole = z.reshape(-1), z.size - z.size % 16
        if z.size < 16:
            flat[:] = list(islice(self._scalar_normals, z.size))
            return z
        u = self.rand(z.size, dtype)
        flat[:whole] = _box_muller(u[:whole])
        if whole < z.size:
            flat[-16:] = _box_muller(self.rand(16, dtype))
        return z

    def randint(self, low: int, high: int, shape: int | tuple[int, ...]) -> np.ndarray:
        """Integers from low to high - 1, int64: a word, or two if the span is 2^28 or more, modulo the span.

        Raises MinidiffError unless -2^63 <= low < high < 2^63.
        """
        low, high = index(low), index(high)
        if not -(2**63) <= low < high < 2**63:
            raise MinidiffError(f"randint needs -2^63 <= low < high < 2^63, not low = {low} and high = {high}")
        words = self._words(int(np.prod(shape)), long=high - low >= LONG_SPAN).astype(np.uint64)
        return (words % (high - low) + low % 2**64).view(np.int64).reshape(shape)  # low < 0: the sum wraps around

    def randperm(self, n: int) -> np.ndarray:
        """A permutation of 0 ... n - 1, int64 (n,): Fisher-Yates, a word for each swap.

        Raises MinidiffError unless 0 <= n < 2^32 / 20.
        """
        if not 0 <= n < LONG_SHUFFLE:
            raise MinidiffError(f"randperm needs n from 0 to {LONG_SHUFFLE - 1}, not {n}")
        order = list(range(n))
        for i, word in enumerate(self._words(max(n - 1, 0)).tolist()):
            j = i + word % (n - i)
            order[i], order[j] = order[j], order[i]
        return np.array(order, np.int64)

    def standard_normal(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """randn; (N, H, W, C) is drawn as (N, C, H, W), torch's layout of images, then axis 1 is moved last."""
        if len(shape) != 4:
            return self.randn(shape, dtype)
        N, H, W, C = shape
        return np.ascontiguousarray(np.moveaxis(self.randn((N, C, H, W), dtype), 1, -1))

    def integers(self, low: int, high: int, size: int | tuple[int, ...]) -> np.ndarray:
        """randint, under NumPy's name."""
        return self.randint(low, high, size)

    def random(self, size: int | tuple[int, ...]) -> np.ndarray:
        """rand in float64, under NumPy's name."""
        return self.rand(size, np.float64)

    def _words(self, count: int, long: bool = False) -> np.ndarray:
        """The next words, uint32 (count,). A long one, uint64, is two words, the high one first."""
        if not long:
            return self._twister.randint(0, 2**32, count, np.uint32)
        high, low = self._words(2 * count).reshape(count, 2).T.astype(np.uint64)
        return high << 32 | low

    def _normals_in_pairs(self) -> Iterator[float]:
        """Normal numbers in float64. The second of a pair is kept for later, whatever else is drawn in between."""
        while True:
            u2, u1 = self.rand(2, np.float64).tolist()  # u2, of the angle, is drawn first
            radius, theta = math.sqrt(-2 * math.log1p(-u1)), 2 * math.pi * u2
            yield radius * math.cos(theta)
            yield radius * math.sin(theta)


def _checked(dtype: Any) -> np.dtype:
    if np.dtype(dtype) not in BITS:
        raise MinidiffError(f"dtype {dtype!r:.80} is not supported: use float32 or float64")
    return np.dtype(dtype)


def _box_muller(u: np.ndarray) -> np.ndarray:
    """Uniform (16 n,) -> normal, float64 (16 n,). Of each block of 16, the first 8 are u1 and give z1, the rest u2."""
    u1, u2 = 1 - u.reshape(-1, 2, 8)[:, 0], u.reshape(-1, 2, 8)[:, 1]  # (n, 8); u1 in (0, 1], for the logarithm
    radius = np.sqrt(-2 * np.log(u1, dtype=np.float64))
    theta = (2 * np.pi * u2).astype(np.float64)  # the product is rounded to u's dtype, as in torch
    return np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=1).ravel()
