"""Convolutions and linear layers whose weights outweigh the pixels: the weights are streamed, in float32 or float16."""

import numpy as np
import pytest
from against_torch import check, check_nan, run_ours
from kernel_cases import conv
from minidiff_kernels.cpu import streamed, winograd_streamed

from minidiff.engine.backend import get_backend

NUMBA = get_backend("numba")
SAME = (1, 1, 1, 1)
WINOGRAD = [
    conv((1, 8, 8, 48), (64, 3, 3, 48), pad=SAME, add="residual"),
    conv((2, 8, 8, 160), (144, 3, 3, 160), pad=SAME, add="temb"),  # chunks of 64, 64 and 32 input channels
    conv((1, 13, 10, 32), (112, 3, 3, 32), pad=(0, 2, 1, 1), bias=False),  # incomplete tiles, the last group too
    conv((2, 28, 24, 32), (352, 3, 3, 32), pad=SAME),  # a second block of tiles
    conv((50, 4, 4, 96), (112, 3, 3, 96), pad=SAME),  # small images, many of them; the input gradient too
    conv((1, 8, 8, 48), (64, 3, 3, 48), pad=SAME, offset=10.0),  # sums whose terms do not cancel
]
PIXELS = [
    conv((1, 1, 77, 96), (320, 1, 1, 96), add="residual"),  # rows are added to fill the last register tile
    conv((3, 1, 1, 64), (96, 1, 1, 64), add="temb", bias=False),
    conv((1, 1, 264, 32), (1056, 1, 1, 32), add="residual"),  # a second block of rows
    conv((1, 8, 8, 32), (112, 3, 3, 32), stride=2, pad=(0, 1, 0, 1)),
    conv((1, 4, 4, 64), (64, 3, 3, 64), pad=SAME, offset=10.0),
]


def shapes(case):
    return [case.inputs[name].shape for name in ("x", "w", "dy")]


@pytest.mark.parametrize("case", WINOGRAD, ids=str)
def test_streamed_winograd_equals_torch(case):
    _, w, (N, *size, _) = shapes(case)
    assert winograd_streamed.supports(w, 1, N, size)
    check(NUMBA, case)


@pytest.mark.parametrize("case", PIXELS, ids=str)
def test_streamed_pixels_equal_torch(case):
    _, w, (N, P, Q, _) = shapes(case)
    assert streamed.supports(w, N * P * Q) and not winograd_streamed.supports(w, 1, N, (P, Q))
    check(NUMBA, case)


@pytest.mark.parametrize("case", [*WINOGRAD[:-1], *PIXELS[:-1]], ids=str)
def test_streamed_nan(case):
    check_nan(NUMBA, case)


@pytest.mark.parametrize("case", WINOGRAD[1:5], ids=str)
def test_streaming_weights_or_tiles_gives_the_same_bits(case, monkeypatch):
    weights = run_ours(NUMBA, case, case.inputs)
    for module in (streamed, winograd_streamed):
        monkeypatch.setattr(module, "supports", lambda *_: False)
    tiles = run_ours(NUMBA, case, case.inputs)
    for name in ("y", "dx"):
        np.testing.assert_array_equal(weights[name], tiles[name])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "x, w",
    [
        ((2, 8, 8, 48), (64, 3, 3, 48)),  # weights streamed
        ((1, 4, 4, 48), (64, 3, 3, 48)),
        ((2, 16, 16, 32), (32, 3, 3, 32)),  # weights whole
        ((1, 4, 4, 32), (64, 1, 1, 32)),
        ((1, 16, 16, 32), (64, 1, 1, 32)),
        ((2, 5, 7, 3), (4, 3, 3, 3)),
    ],
)
def test_float16_weights_are_widened_exactly(backend, x, w, stride):
    rng, pad = np.random.default_rng(0), (w[1] // 2,) * 4
    x, w = (backend.asarray(rng.standard_normal(shape, np.float32)) for shape in (x, w))
    half = w.astype(np.float16)
    y, exact, other = (
        backend.to_numpy(backend.conv2d(x, a, None, stride, pad)) for a in (half, backend.widen(half), w)
    )
    np.testing.assert_array_equal(y, exact)
    assert np.abs(y - other).max() > 0
