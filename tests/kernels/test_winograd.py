"""Convolutions 3x3 that are wide enough for Winograd's way everywhere, the GPU's weight gradient among them."""

import pytest
from against_torch import check, check_nan, rms_error, run_ours
from kernel_cases import conv

from minidiff.engine.backend import get_backend

SAME = (1, 1, 1, 1)
CASES = [
    conv((2, 16, 16, 64), (64, 3, 3, 64), pad=SAME),
    conv(
        (9, 7, 5, 64), (80, 3, 3, 64), pad=SAME, bias=False
    ),  # tiles that reach beyond the border; no whole quad of them
    conv((3, 9, 14, 72), (130, 3, 3, 72), pad=(2, 1, 0, 1), add="temb"),
    conv((8, 4, 4, 136), (64, 3, 3, 136), pad=(0, 2, 1, 2)),
    conv((2, 16, 16, 64), (64, 3, 3, 64), pad=SAME, offset=10.0),  # sums that do not cancel
]
LONG = conv((16, 32, 32, 64), (64, 3, 3, 64), pad=SAME)  # 1,024 tiles


@pytest.mark.parametrize("case", CASES, ids=str)
def test_winograd_equals_torch(backend, case):
    check(backend, case)


@pytest.mark.parametrize("case", CASES[:-1], ids=str)
def test_winograd_carries_nan(backend, case):
    check_nan(backend, case)


def test_long_sums_are_cut_before_their_rounding_errors_show():
    check(get_backend("cupy"), LONG)


def test_tiles_that_find_no_room_together_are_taken_in_turn(monkeypatch):
    from minidiff_kernels.gpu import winograd

    case, backend = LONG, get_backend("cupy")
    together = run_ours(backend, case, case.inputs)["dw"]
    monkeypatch.setattr(winograd, "SCRATCH", 36 * 160 * 400)  # 384 tiles at a time
    in_turn = run_ours(backend, case, case.inputs)["dw"]
    assert 0 < rms_error(in_turn, together) < 1e-6


@pytest.mark.parametrize("name", ["cupy", "cupy-tf32"])
def test_a_wide_weight_gradient_is_exact_in_both_precisions(name):
    """Where Winograd's way in float32 is faster than tensor cores are, it is taken; dx shows which backend it is."""
    case, rounded = conv((2, 16, 16, 256), (256, 3, 3, 256), pad=SAME), name == "cupy-tf32"
    got, want = (run_ours(get_backend(b), case, case.inputs) for b in (name, "numba"))
    assert rms_error(got["dw"], want["dw"]) < 2e-6
    assert (rms_error(got["dx"], want["dx"]) > 1e-4) == rounded
