"""Upsampling and concatenation along the channels."""

import pytest
from against_torch import check, check_nan
from kernel_cases import concat, upsample

CASES = [
    upsample(1, 1, 1, 1),
    upsample(2, 1, 1, 64),
    upsample(1, 3, 5, 3),
    upsample(3, 4, 2, 17),
    upsample(2, 7, 8, 33),
    concat(1, 1, 1, channels=(1, 1)),
    concat(2, 5, 7, channels=(3, 5)),
    concat(3, 4, 4, channels=(32, 17)),
    concat(3, 4, 4, channels=(32, 20)),  # float4 on a GPU
    concat(1, 9, 2, channels=(1, 64)),
    concat(7, channels=(33, 8)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_resample_equals_torch(backend, case):
    check(backend, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_resample_propagates_nan(backend, case):
    check_nan(backend, case)
