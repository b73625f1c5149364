"""Convolution, forward and backward, over many shapes."""

import numpy as np
import pytest
from against_torch import check, check_nan, draw
from kernel_cases import conv

SAME = (1, 1, 1, 1)
CASES = [
    conv((1, 1, 1, 1), (1, 1, 1, 1)),
    conv((1, 1, 1, 3), (5, 3, 3, 3), pad=SAME),
    conv((1, 1, 1, 64), (33, 1, 1, 64)),
    conv((3, 1, 1, 17), (8, 5, 5, 17), pad=(2, 2, 2, 2)),
    conv((2, 4, 4, 3), (8, 3, 3, 3), pad=SAME),
    conv((2, 5, 7, 3), (5, 3, 3, 3), pad=SAME, bias=False),
    conv((2, 7, 5, 8), (17, 3, 3, 8), pad=SAME, add="temb"),
    conv((2, 6, 5, 17), (33, 3, 3, 17), pad=SAME, add="residual"),
    conv((1, 5, 4, 33), (32, 3, 3, 33), pad=SAME, add="temb"),
    conv((4, 4, 9, 32), (64, 3, 3, 32), pad=SAME, add="residual", bias=False),
    conv((3, 8, 8, 64), (1, 3, 3, 64), pad=SAME),
    conv((2, 8, 8, 1), (64, 3, 3, 1), pad=SAME),
    conv((2, 6, 7, 5), (8, 1, 1, 5)),
    conv((4, 3, 3, 33), (17, 1, 1, 33), add="residual"),
    conv((1, 1, 40, 32), (96, 1, 1, 32), add="residual"),
    conv((3, 4, 4, 64), (48, 1, 1, 64), add="temb"),
    conv((2, 16, 16, 160), (64, 1, 1, 160), bias=False),
    conv((2, 9, 6, 3), (8, 5, 5, 3), pad=(2, 2, 2, 2)),
    conv((1, 7, 8, 8), (5, 5, 5, 8)),
    conv((2, 3, 8, 5), (8, 1, 3, 5), pad=(0, 0, 1, 1)),
    conv((2, 8, 3, 5), (8, 3, 1, 5), pad=(1, 1, 0, 0)),
    conv((2, 6, 9, 3), (4, 2, 3, 3), pad=(1, 0, 0, 2)),
    conv((2, 8, 8, 8), (8, 3, 3, 8), stride=2, pad=(0, 1, 0, 1)),
    conv((1, 16, 8, 32), (32, 3, 3, 32), stride=2, pad=SAME),  # too few tiles for Winograd
    conv((3, 15, 18, 32), (48, 3, 3, 32), stride=2, pad=(0, 1, 0, 1), add="residual"),  # Winograd
    conv((2, 7, 9, 5), (17, 3, 3, 5), stride=2, pad=(0, 1, 0, 1), add="temb"),
    conv((1, 2, 2, 64), (64, 3, 3, 64), stride=2, pad=(0, 1, 0, 1)),
    conv((2, 5, 5, 3), (8, 1, 1, 3), stride=2),
    conv((2, 10, 11, 3), (8, 3, 3, 3), stride=3, pad=SAME),
    conv((1, 9, 8, 17), (5, 5, 5, 17), stride=3, pad=(2, 2, 2, 2), add="residual"),
    conv((2, 7, 8, 3), (5, 1, 3, 3), stride=3),  # some input pixels contribute to no output: their gradient is zero
    conv((2, 3, 3, 5), (8, 3, 3, 5), pad=(3, 4, 2, 5)),  # some outputs depend on padding only
    conv((1, 4, 4, 16), (16, 3, 3, 16), pad=SAME),  # whole vectors of channels: Winograd and 1x1 kernels apply
    conv((2, 5, 7, 32), (48, 3, 3, 32), pad=SAME, add="temb"),
    conv((5, 9, 6, 48), (32, 3, 3, 48), add="residual"),
    conv((2, 6, 11, 64), (32, 3, 3, 64), pad=(0, 2, 1, 0), bias=False),
    conv((1, 6, 11, 64), (32, 3, 3, 64), pad=SAME),  # too few tiles for Winograd
    conv((1, 5, 6, 32), (32, 3, 3, 32), pad=(3, 4, 2, 5)),
    conv((2, 8, 8, 96), (96, 3, 3, 96), pad=SAME, add="residual"),
    conv((4, 32, 32, 32), (32, 3, 3, 32), pad=SAME),
    conv((1, 13, 11, 48), (72, 3, 3, 48), pad=SAME, add="temb"),
    conv((1, 4, 4, 256), (40, 3, 3, 256), pad=SAME),  # long sums over channels
    conv((16, 32, 32, 8), (8, 3, 3, 8), pad=SAME),  # long sums over pixels
    conv((8, 16, 16, 8), (8, 3, 3, 8), pad=SAME, offset=10.0),  # whose terms do not cancel
    conv((2, 16, 16, 32), (32, 3, 3, 32), pad=SAME, offset=10.0),
]


def random_case(seed):
    """A random shape. At least two output channels, since a single dbias may cancel to near zero."""
    rng = np.random.default_rng(seed)
    N, H, W, KH, KW, stride = rng.integers(1, [4, 12, 12, 4, 4, 4]).tolist()
    C, O = rng.choice([2, 3, 5, 8, 15, 16, 17, 32, 48], 2).tolist()
    pad = tuple(rng.integers(KH // 2, 4, 2).tolist() + rng.integers(KW // 2, 4, 2).tolist())
    add = (None, "temb", "residual")[seed % 3]
    return conv((N, H, W, C), (O, KH, KW, C), stride, pad, bias=seed % 2 == 0, add=add)


@pytest.mark.parametrize("case", CASES + [random_case(seed) for seed in range(30)], ids=str)
def test_conv_equals_torch(backend, case):
    check(backend, case)


@pytest.mark.parametrize("case", CASES[:-3], ids=str)
def test_conv_propagates_nan(backend, case):
    check_nan(backend, case)


def test_need_dx_does_not_change_the_other_gradients(backend):
    dy, x, w = (backend.asarray(draw(*shape)) for shape in ((2, 5, 4, 8), (2, 5, 4, 3), (8, 3, 3, 3)))
    _, *want = backend.conv2d_backward(dy, x, w, 1, SAME)
    dx, *got = backend.conv2d_backward(dy, x, w, 1, SAME, need_dx=False)
    assert dx is None
    assert all((a == b).all() for a, b in zip(got, want, strict=True))


def test_dx_alone_needs_only_the_shape_of_x(backend):
    dy, x, w = (backend.asarray(draw(*shape)) for shape in ((2, 5, 4, 8), (2, 5, 4, 3), (8, 3, 3, 3)))
    dx, dw, dbias = backend.conv2d_backward(dy, x * np.nan, w, 1, SAME, need_dw=False)
    assert dw is None and dbias is None
    assert (dx == backend.conv2d_backward(dy, x, w, 1, SAME)[0]).all()
