"""Upsampling and joining along the channels: numbers are moved, so the results are exact."""

import pytest
import torch
import torch.nn.functional as F
from against_torch import Case, autograd, check, check_nan, draw, nchw, nhwc


def upsample(N, H, W, C):
    def ours(backend, dy, x):
        return {"y": backend.upsample_nearest(x), "dx": backend.upsample_nearest_backward(dy)}

    def theirs(x):
        return nhwc(F.interpolate(nchw(x), scale_factor=2, mode="nearest"))

    inputs = {"dy": draw(N, 2 * H, 2 * W, C, seed=1), "x": draw(N, H, W, C)}
    return Case(f"upsample {N, H, W, C}", inputs, ours, autograd(theirs))


def concat(*lead, channels):
    A, B = channels

    def ours(backend, dy, a, b):
        da, db = backend.concat_backward(dy, A)
        return {"y": backend.concat(a, b), "da": da, "db": db}

    inputs = {"dy": draw(*lead, A + B, seed=1), "a": draw(*lead, A), "b": draw(*lead, B, seed=2)}
    theirs = autograd(lambda a, b: torch.cat((a, b), -1))
    return Case(f"concat {lead} {A}+{B}", inputs, ours, theirs)


CASES = [
    upsample(1, 1, 1, 1),
    upsample(2, 1, 1, 64),
    upsample(1, 3, 5, 3),
    upsample(3, 4, 2, 17),
    upsample(2, 7, 8, 33),
    concat(1, 1, 1, channels=(1, 1)),
    concat(2, 5, 7, channels=(3, 5)),
    concat(3, 4, 4, channels=(32, 17)),
    concat(1, 9, 2, channels=(1, 64)),
    concat(7, channels=(33, 8)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_resample_equals_torch(backend, case):
    check(backend, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_resample_carries_nan(backend, case):
    check_nan(backend, case)
