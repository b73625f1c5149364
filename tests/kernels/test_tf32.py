"""Convolution on tensor cores: as accurate as TF32 factors allow."""

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

# Truncation to ten bits of mantissa has a relative error of up to 2^-10, with an rms of 1 / sqrt(3) of that. The errors
# of the two factors of a product have the same sign, so the bound is their sum.
TRUNCATION = 2**-10 * 2 / 3**0.5


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tensor_cores_truncate_factors_only(case):
    got = run_ours(get_backend("cupy-tf32"), case, case.inputs)
    want = run_theirs(case, case.inputs, torch.float64)
    for k in ("y", "dx", "dw"):
        assert TRUNCATION / 8 < rms_error(got[k], want[k]) <= TRUNCATION, k
    assert rms_error(got["dbias"], want["dbias"]) < 1e-6  # a sum without products


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tensor_cores_propagate_nan(case):
    check_nan(get_backend("cupy-tf32"), case)


def test_small_integers_are_multiplied_exactly():
    """Integers are exact in TF32, so any error would be in the layout of lanes and fragments."""
    rng = np.random.default_rng(0)
    x, w = rng.integers(-8, 9, (2, 6, 7, 36)), rng.integers(-8, 9, (33, 3, 3, 36))
    exact, rounded = get_backend("numpy"), get_backend("cupy-tf32")
    y = rounded.conv2d(rounded.asarray(x), rounded.asarray(w), pad=SAME)
    np.testing.assert_array_equal(rounded.to_numpy(y), exact.conv2d(x.astype(float), w.astype(float), pad=SAME))
