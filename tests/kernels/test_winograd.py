"""3x3 convolutions that use Winograd: the reference, the weight gradient on a GPU, everything on a CPU."""

import numpy as np
import pytest
from against_torch import check, check_nan, rms_error, run_ours
from kernel_cases import conv
from minidiff_kernels.cpu import winograd_strided
from minidiff_kernels.gpu import winograd
from minidiff_kernels.reference import conv as direct
from minidiff_kernels.reference import winograd as reference

from minidiff.engine.backend import get_backend

SAME = (1, 1, 1, 1)
CASES = [
    conv((2, 16, 16, 64), (64, 3, 3, 64), pad=SAME),
    conv((9, 7, 5, 64), (80, 3, 3, 64), pad=SAME, bias=False),  # incomplete tiles and an incomplete quad
    conv((3, 9, 14, 72), (130, 3, 3, 72), pad=(2, 1, 0, 1), add="temb"),
    conv((16, 4, 4, 136), (64, 3, 3, 136), pad=(0, 2, 1, 2)),
    conv((17, 15, 13, 64), (64, 3, 3, 64), pad=SAME),  # two splits and a remainder
    conv((2, 16, 16, 64), (64, 3, 3, 64), pad=SAME, offset=10.0),  # sums whose terms do not cancel
]
STRIDED = [
    conv((3, 16, 16, 16), (32, 3, 3, 16), stride=2, pad=SAME),
    conv((2, 16, 16, 32), (48, 3, 3, 32), stride=2, pad=(0, 1, 0, 1), bias=False),
    conv((5, 9, 11, 48), (32, 3, 3, 48), stride=2, pad=SAME, add="residual"),  # incomplete tiles
    conv((4, 13, 10, 32), (64, 3, 3, 32), stride=2, pad=(0, 1, 1, 1), add="temb"),  # even above, odd to the left
    conv((6, 10, 7, 64), (32, 3, 3, 64), stride=2, pad=(3, 3, 2, 4)),  # some outputs depend on padding only
    conv((11, 6, 12, 32), (32, 3, 3, 32), stride=2),  # the last row of x is in no output
    conv((33, 4, 4, 16), (16, 3, 3, 16), stride=2, pad=SAME),
    conv((70, 8, 8, 256), (16, 3, 3, 256), stride=2, pad=SAME),  # two chunks of the weight gradient
    conv((3, 16, 16, 32), (32, 3, 3, 32), stride=2, pad=SAME, offset=10.0),  # sums whose terms do not cancel
]
LONG = conv((17, 31, 30, 64), (64, 3, 3, 64), pad=SAME)  # eight and a half splits


@pytest.mark.parametrize("case", CASES, ids=str)
def test_winograd_equals_torch(backend, case):
    assert winograd.supports(case.inputs["w"].shape, 1, case.inputs["dy"].shape)
    check(backend, case)


@pytest.mark.parametrize("case", CASES[:-1], ids=str)
def test_winograd_propagates_nan(backend, case):
    check_nan(backend, case)


@pytest.mark.parametrize("case", STRIDED, ids=str)
def test_strided_winograd_equals_torch(case):
    x, w, dy = (case.inputs[name].shape for name in ("x", "w", "dy"))
    assert winograd_strided.supports(w, 2, x[0], dy[1:3])
    check(get_backend("numba"), case)


@pytest.mark.parametrize("case", STRIDED[:-1], ids=str)
def test_strided_winograd_propagates_nan(case):
    check_nan(get_backend("numba"), case)


@pytest.mark.parametrize("name", ["cupy"])
def test_long_sums_are_split(name):
    check(get_backend(name), LONG)


@pytest.mark.parametrize("name", ["cupy"])
def test_several_passes_over_the_tiles(monkeypatch, name):
    backend = get_backend(name)
    one_pass = run_ours(backend, LONG, LONG.inputs)["dw"]
    monkeypatch.setattr(
        winograd, "SCRATCH", 36 * (64**2 + 3 * 160 * winograd.SPLIT_TILES)
    )  # 384 tiles: 384 + 384 + 320
    check(backend, LONG)
    assert 0 < rms_error(run_ours(backend, LONG, LONG.inputs)["dw"], one_pass) < 1e-6


@pytest.mark.parametrize("O, C", [(64, 64), (256, 256), (1280, 1280), (64, 1920)])
@pytest.mark.parametrize("tiles", [32, 1000, 4096, 2**20])
def test_passes_fit_in_scratch(tiles, O, C):
    pass_tiles = winograd._tiles_per_pass(tiles, O, C)
    splits = pass_tiles // winograd.SPLIT_TILES
    assert (
        pass_tiles % winograd.SPLIT_TILES == 0
        and 36 * (pass_tiles * (O + C) + (splits + 1) * O * C) <= winograd.SCRATCH
    )


@pytest.mark.parametrize("name", ["cupy", "cupy-tf32"])
def test_a_wide_weight_gradient_is_exact_in_both_precisions(name):
    """From 256 channels on, dw of cupy-tf32 is a float32 Winograd product; dx is on tensor cores."""
    case, tf32 = conv((2, 16, 16, 256), (256, 3, 3, 256), pad=SAME), name == "cupy-tf32"
    got, want = (run_ours(get_backend(b), case, case.inputs) for b in (name, "numba"))
    assert rms_error(got["dw"], want["dw"]) < 2e-6
    assert (rms_error(got["dx"], want["dx"]) > 1e-4) == tf32


def test_the_matrices_make_a_convolution():
    """For any points: the six products give the four outputs, exactly but for rounding."""
    rng = np.random.default_rng(0)
    d, g = rng.standard_normal(6), rng.standard_normal(3)
    for a, b in ((5 / 8, 3 / 2), (1, 2)):
        At, G, Bt = reference.matrices(a, b)
        want = [d[i : i + 3] @ g for i in range(4)]
        np.testing.assert_allclose(At @ ((G @ g) * (Bt @ d)), want, rtol=0, atol=1e-13)


def test_the_strided_matrices_make_a_convolution():
    """With stride 2: the five products give the two outputs."""
    rng = np.random.default_rng(0)
    d, g = rng.standard_normal(5), rng.standard_normal(3)
    At, G, Bt = reference.strided_matrices()
    np.testing.assert_allclose(At @ ((G @ g) * (Bt @ d)), [d[i : i + 3] @ g for i in (0, 2)], rtol=0, atol=1e-13)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "N, H, W, C, O, pad",
    [
        (2, 8, 8, 3, 5, SAME),
        (1, 3, 3, 1, 1, (0, 0, 0, 0)),
        (2, 7, 5, 4, 3, (2, 1, 0, 1)),
        (2, 8, 6, 4, 3, (0, 1, 0, 1)),
        (2, 5, 6, 3, 2, (3, 4, 2, 5)),
    ],
)
def test_the_reference_equals_the_sum_over_taps(N, H, W, C, O, pad, stride):
    """In float64: whole and incomplete tiles, even and uneven padding, outputs that depend on padding only."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((N, H, W, C)), rng.standard_normal((O, 3, 3, C))
    y = direct.conv2d(x, w, stride=stride, pad=pad)
    dy = rng.standard_normal(y.shape)
    dx, dw, _ = direct.conv2d_backward(dy, x, w, stride, pad)
    got = reference.conv2d(x, w, pad, stride), *reference.conv2d_backward(dy, x, w, pad, stride)
    for a, b in zip(got, (y, dx, dw), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
