"""Convolutions 3x3 whose weight gradient goes Winograd's way on a GPU, as most of them do altogether on a CPU."""

import pytest
from against_torch import check, check_nan, rms_error, run_ours
from kernel_cases import conv
from minidiff_kernels.gpu import winograd

from minidiff.engine.backend import get_backend

SAME = (1, 1, 1, 1)
CASES = [
    conv((2, 16, 16, 64), (64, 3, 3, 64), pad=SAME),
    conv((9, 7, 5, 64), (80, 3, 3, 64), pad=SAME, bias=False),  # tiles beyond the border; no whole quad of them
    conv((3, 9, 14, 72), (130, 3, 3, 72), pad=(2, 1, 0, 1), add="temb"),
    conv((16, 4, 4, 136), (64, 3, 3, 136), pad=(0, 2, 1, 2)),
    conv((17, 15, 13, 64), (64, 3, 3, 64), pad=SAME),  # two parts and some tiles
    conv((2, 16, 16, 64), (64, 3, 3, 64), pad=SAME, offset=10.0),  # sums that do not cancel
]
LONG = conv((17, 31, 30, 64), (64, 3, 3, 64), pad=SAME)  # eight parts and a half


@pytest.mark.parametrize("case", CASES, ids=str)
def test_winograd_equals_torch(backend, case):
    assert winograd.fits(case.inputs["w"].shape, 1, case.inputs["dy"].shape)
    check(backend, case)


@pytest.mark.parametrize("case", CASES[:-1], ids=str)
def test_winograd_carries_nan(backend, case):
    check_nan(backend, case)


@pytest.mark.parametrize("name", ["cupy"])
def test_long_sums_are_cut_before_their_rounding_errors_show(name):
    check(get_backend(name), LONG)


@pytest.mark.parametrize("name", ["cupy"])
def test_tiles_that_find_no_room_together_are_taken_in_turn(monkeypatch, name):
    backend = get_backend(name)
    together = run_ours(backend, LONG, LONG.inputs)["dw"]
    monkeypatch.setattr(winograd, "SCRATCH", 36 * (64**2 + 3 * 160 * winograd.PART))  # 384 tiles: 384 + 384 + 320
    check(backend, LONG)
    assert 0 < rms_error(run_ours(backend, LONG, LONG.inputs)["dw"], together) < 1e-6


@pytest.mark.parametrize("O, C", [(64, 64), (256, 256), (1280, 1280), (64, 1920)])
@pytest.mark.parametrize("tiles", [32, 1000, 4096, 2**20])
def test_turns_find_room(tiles, O, C):
    at_once = winograd._at_once(tiles, O, C)
    parts = at_once // winograd.PART
    assert at_once % winograd.PART == 0 and 36 * (at_once * (O + C) + (parts + 1) * O * C) <= winograd.SCRATCH


@pytest.mark.parametrize("name", ["cupy", "cupy-tf32"])
def test_a_wide_weight_gradient_is_exact_in_both_precisions(name):
    """From 256 channels on dw is float32, with a quarter of the products, instead of on tensor cores; dx is on them."""
    case, rounded = conv((2, 16, 16, 256), (256, 3, 3, 256), pad=SAME), name == "cupy-tf32"
    got, want = (run_ours(get_backend(b), case, case.inputs) for b in (name, "numba"))
    assert rms_error(got["dw"], want["dw"]) < 2e-6
    assert (rms_error(got["dx"], want["dx"]) > 1e-4) == rounded
