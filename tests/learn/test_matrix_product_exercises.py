"""The solutions of chapter 15: the tile by its conditions, the product against NumPy's, its loads at both ends."""

import numpy as np
import pytest

from minidiff.learn.chapters.kernels.matrix_product import best_tile, tiled_product


def test_best_tiles():
    assert best_tile(32, 4, 2) == (5, 5)  # 31 registers, 10 loads for 25 FMAs
    assert best_tile(16, 4, 2) == (4, 3)  # all 16 registers; the tile of cpu/product.py without AVX-512
    assert best_tile(8, 6, 1) == (6, 1)  # 2 x 2 needs fewer loads, and has only 4 sums


def test_product_is_numpys():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((7, 5)), rng.standard_normal((5, 11))
    np.testing.assert_allclose(tiled_product(a, b, 3, 4)[0], a @ b, rtol=1e-12)


@pytest.mark.parametrize(("rows", "columns", "loads"), [(1, 1, 2 * 6 * 8 * 5), (6, 8, 5 * (6 + 8))])
def test_loads_of_the_smallest_and_the_largest_tile(rows, columns, loads):
    assert tiled_product(np.ones((6, 5)), np.ones((5, 8)), rows, columns)[1] == loads
