"""Convolution on tensor cores: as exact as factors of ten bits of mantissa allow, and no less."""

import numpy as np
import pytest
import torch
from against_torch import check_nan, rms_error, run_ours, run_theirs
from kernel_cases import conv

from minidiff.engine.backend import get_backend

SAME = (1, 1, 1, 1)
CASES = [
    conv((2, 5, 7, 3), (5, 3, 3, 3), pad=SAME),
    conv((2, 9, 8, 32), (40, 3, 3, 32), pad=SAME, add="temb"),
    conv((2, 8, 9, 48), (96, 3, 3, 48), stride=2, pad=(0, 1, 0, 1)),
    conv((1, 7, 5, 160), (130, 1, 1, 160), add="residual"),
    conv((2, 7, 9, 5), (17, 3, 3, 5), stride=2, pad=(0, 1, 0, 1), add="temb"),
]

# Cutting to ten bits makes a factor smaller by up to 2^-10 of it, by 1 / sqrt(3) of that in the root of the mean
# square. A product has two factors; both errors have one sign, so that they add up at most as numbers do.
CUT = 2**-10 * 2 / 3**0.5


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tensor_cores_cut_factors_and_nothing_else(case):
    got = run_ours(get_backend("cupy-tf32"), case, case.inputs)
    want = run_theirs(case, case.inputs, torch.float64)
    for k in ("y", "dx", "dw"):
        assert CUT / 8 < rms_error(got[k], want[k]) <= CUT, k
    assert rms_error(got["dbias"], want["dbias"]) < 1e-6  # that is a sum, not a product


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tensor_cores_carry_nan(case):
    check_nan(get_backend("cupy-tf32"), case)


def test_numbers_of_ten_bits_are_multiplied_exactly():
    """Lanes and fragments are where they should be: small whole numbers come out as they are."""
    rng = np.random.default_rng(0)
    x, w = rng.integers(-8, 9, (2, 6, 7, 36)), rng.integers(-8, 9, (33, 3, 3, 36))
    exact, rounded = get_backend("numpy"), get_backend("cupy-tf32")
    y = rounded.conv2d(rounded.asarray(x), rounded.asarray(w), pad=SAME)
    np.testing.assert_array_equal(rounded.to_numpy(y), exact.conv2d(x.astype(float), w.astype(float), pad=SAME))
