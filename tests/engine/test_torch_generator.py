"""torch's generator without torch: every number written here was drawn by torch 2.13.0, on a CPU with AVX2."""

import numpy as np
import pytest

import minidiff as md
from minidiff import MinidiffError, torch_generator

# Of the largest normal numbers, up to sqrt(-2 ln 2^-24) = 5.8, one unit in the last place is 4.8e-7.
RANDN = {"rtol": 0, "atol": 5e-7}

BLOCK = [
    -1.12583983, -1.1523602, -0.250578582, -0.433878809, 0.848710358, 0.692009151, -0.31601277, -2.11521935,
    0.322274923, -1.26333475, 0.349983186, 0.30813393, 0.119841509, 1.2376579, 1.11677718, -0.247278154,
]  # fmt: skip
BLOCK_AND_ONE = [
    -1.12583983, -1.6959312, 0.566650629, 0.793508351, 0.598839462, -1.55509508, -0.34136039, 1.85300612,
    0.468096405, -0.585497558, -0.173396751, 0.183477938, 1.38936615, 1.58633423, 0.946298361, -0.843676746,
    0.931826591,
]  # fmt: skip


@pytest.mark.parametrize(
    "seed, numbers",
    [
        (0, [0.49625659, 0.768221796, 0.0884774327]),
        (42, [0.882269263, 0.915003955, 0.38286376]),
        (np.int64(2**32 + 5), [0.830251873, 0.126110911, 0.90746969]),
        (2**63, [0.49625659, 0.768221796, 0.0884774327]),  # its low 32 bits are those of 0
        (2**64 - 1, [0.993799388, 0.571306348, 0.570008039]),
        (-1, [0.993799388, 0.571306348, 0.570008039]),
    ],
)
def test_rand(seed, numbers):
    drawn = torch_generator(seed).rand(3)
    assert drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn, np.float32(numbers))


def test_every_schedule_draws_its_timesteps():
    """random and standard_normal in float64, as NumPy's generators give them."""
    t = md.Flow().sample_t(torch_generator(0), 3)
    np.testing.assert_array_equal(t, torch_generator(0).rand(3, np.float64), strict=True)
    sigma = md.EDM().sample_t(torch_generator(0), 3)
    np.testing.assert_array_equal(sigma, np.exp(1.2 * torch_generator(0).randn(3, np.float64) - 1.2), strict=True)
    assert md.linear_schedule(10).sample_t(torch_generator(0), 3).dtype == np.int64


def test_rand_in_float64():
    drawn = torch_generator(0).rand((3,), np.float64)
    np.testing.assert_array_equal(drawn, [0.9700530018065531, 0.707819864399788, 0.45938294312745087])


@pytest.mark.parametrize("numbers", [BLOCK, BLOCK_AND_ONE], ids=len)
def test_randn(numbers):
    drawn = torch_generator(0).randn(len(numbers))
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn, numbers, **RANDN)


def test_randn_in_float64():
    drawn = torch_generator(0).randn((2, 8), np.float64)
    assert drawn.dtype == np.float64
    # log, root, sine and product, each off by a few 1.1e-16 of numbers below 9
    numbers = [-2.310411800234176, -0.3732508612577643, -1.0608166785462863]
    np.testing.assert_allclose(drawn[0, :3], numbers, rtol=0, atol=1e-14)


def test_a_kept_normal_number_outlives_a_block():
    generator = torch_generator(0)
    # Made in float64: both are rounded from next to the same number, so they may differ by one unit.
    first = np.float32([1.54099607, -0.293428898, -2.17878938])
    np.testing.assert_array_max_ulp(generator.randn(3), first, 1)
    np.testing.assert_allclose(generator.randn(16)[:2], [-0.356128365, 0.437222719], **RANDN)
    np.testing.assert_array_max_ulp(generator.randn((2, 1)).ravel(), np.float32([0.568431258, -0.856674612]), 1)
    assert generator.rand(1) == 0.1852310299873352


@pytest.mark.parametrize(
    "low, high, numbers",
    [
        (-3, 1000, [786, 340, 349, 13, 645]),
        (0, 2**28 - 1, [209652404, 130329144, 118924928]),  # the last of the spans for which a word will do
        (0, 2**28, [130329135, 136432832, 195187451]),
        (-(2**63), 2**63 - 1, [900450186894289455, 3969543146641149120, 1895649597198586619]),
    ],
)
def test_randint(low, high, numbers):
    for draw in (torch_generator(0).randint, torch_generator(0).integers):
        drawn = draw(low, high, len(numbers))
        assert drawn.dtype == np.int64 and drawn.tolist() == numbers


def test_randperm():
    drawn = torch_generator(0).randperm(10)
    assert drawn.dtype == np.int64 and drawn.tolist() == [4, 1, 7, 5, 3, 9, 0, 8, 6, 2]


def test_shapes():
    generator = torch_generator(0)
    for draw in (generator.rand, generator.randn, lambda shape: generator.randint(0, 5, shape)):
        assert [draw(shape).shape for shape in ((), 3, (0, 3), (2, 9))] == [(), (3,), (0, 3), (2, 9)]


def test_drawing_nothing_draws_nothing():
    generator = torch_generator(0)
    for drawn in (generator.rand(0), generator.randn((0, 3)), generator.randint(0, 5, 0), generator.randperm(0)):
        assert drawn.size == 0
    generator.randperm(1)
    np.testing.assert_array_equal(generator.rand(1), torch_generator(0).rand(1))


# --- as an rng of this library

# randn_tensor((2, 3, 4, 4)) of diffusers, from seed 0: the first image's top left corner, the second image's pixel
# (3, 2), and that pixel again in the next call
CORNER, PIXEL, NEXT_PIXEL = (
    [-1.12583983, -1.35265374, -0.613583088],
    [1.81972528, -0.140671432, 0.0335318595],
    [0.157392889, 0.240810513, -1.18936396],
)


def test_images_are_those_of_randn_tensor():
    generator = torch_generator(0)
    noise, next_noise = (generator.standard_normal((2, 4, 4, 3), dtype=np.float32) for _ in range(2))
    assert noise.dtype == np.float32 and noise.shape == (2, 4, 4, 3) and noise.flags.c_contiguous
    np.testing.assert_allclose(noise[0, 0, 0], CORNER, **RANDN)
    np.testing.assert_allclose(noise[1, 3, 2], PIXEL, **RANDN)
    np.testing.assert_allclose(next_noise[1, 3, 2], NEXT_PIXEL, **RANDN)


def test_other_shapes_are_drawn_in_memory_order():
    np.testing.assert_allclose(torch_generator(0).standard_normal((1, 2, 8)).ravel(), BLOCK, **RANDN)


def test_sampling_starts_from_the_noise_of_diffusers():
    inputs = []

    def model(x_t, t):
        inputs.append(x_t)
        return np.zeros_like(x_t)

    next(md.sample(model, md.linear_schedule(), (2, 4, 4, 3), torch_generator(0)))
    np.testing.assert_allclose(inputs[0][0, 0, 0], CORNER, **RANDN)
    np.testing.assert_allclose(inputs[0][1, 3, 2], PIXEL, **RANDN)


# --- what is refused


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.0, "0", None])
def test_a_seed_that_torch_does_not_take(seed):
    with pytest.raises(MinidiffError, match="seed must be an integer from"):
        torch_generator(seed)


@pytest.mark.parametrize("count", [3, 32])
@pytest.mark.parametrize("dtype", [np.float16, np.int64])
def test_another_dtype(dtype, count):
    generator = torch_generator(0)
    for draw in (generator.rand, generator.randn, generator.standard_normal):
        with pytest.raises(MinidiffError, match="use float32 or float64"):
            draw((count,), dtype)


@pytest.mark.parametrize("low, high", [(5, 5), (5, 4), (0, 2**63), (-(2**63) - 1, 0)])
def test_an_empty_or_too_wide_span(low, high):
    with pytest.raises(MinidiffError, match="not low = "):
        torch_generator(0).randint(low, high, 1)


@pytest.mark.parametrize("n", [-1, 214748364])
def test_a_permutation_by_another_rule(n):
    with pytest.raises(MinidiffError, match=f"not {n}$"):
        torch_generator(0).randperm(n)
