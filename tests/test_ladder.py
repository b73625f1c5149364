"""Every rung of the ladders in benchmarks/ladder/ computes the same as the reference does in float64."""

import climb
import numpy as np
import pytest

WINOGRAD = 1.2e-6  # the floor of the kernels' tests, for convolutions: tests/against_torch.py
FLOOR = 3e-7  # and for all others


def bound(ladder, floor):
    """Twice the error that the reference has in float32, or the floor: relative rms."""
    return max(2 * climb.error(ladder.reference(np.float32), ladder.reference()), floor)


def one_chain(K):
    """What a sum of K terms, one after the other, may be off by; the reference starts anew with every tap.

    The k-th addition is off by at most 2^-24 of a partial sum of rms sqrt(k). The squares of these errors add up to
    K^2 / 2, and the result has the rms sqrt(K).
    """
    return 2**-24 * (K / 2) ** 0.5


def rungs(*ladders):
    return [pytest.param(one, name, id=f"{name}: {one.label}") for one in ladders for name in one.rungs]


@pytest.mark.parametrize(
    ("ladder", "name"),
    rungs(climb.convolution(2, 8, 32, 64), climb.convolution(1, 11, 64, 32), climb.convolution(2, 20, 48, 48)),
)
def test_convolution(ladder, name):
    """Of a size that tiles and blocks divide, and of sizes that they do not."""
    K = 9 * ladder.shapes["x"][3]
    floors = {"naive loop": one_chain(K), "im2col": one_chain(K), "Winograd": WINOGRAD, "Winograd, fused": WINOGRAD}
    floor = floors.get(name, 0)
    assert climb.error(ladder.rungs[name](**ladder.inputs()), ladder.reference()) <= bound(ladder, floor)


@pytest.mark.parametrize(
    ("ladder", "name"),
    rungs(climb.normalisation(2, 5, 64), climb.attention(2, 40, 2, 24), climb.attention(1, 16, 1, 32)),
)
def test_the_others(ladder, name):
    assert climb.error(ladder.rungs[name](**ladder.inputs()), ladder.reference()) <= bound(ladder, FLOOR)


def test_the_error_of_a_spoilt_rung_shows():
    """A weight tap scaled by 1.001 is beyond every bound above."""
    ladder = climb.convolution(2, 8, 32, 64)
    inputs = ladder.inputs()
    inputs["w"][:, 1, 1] *= np.float32(1.001)
    for rung in ladder.rungs.values():
        assert climb.error(rung(**inputs), ladder.reference()) > bound(ladder, WINOGRAD)
