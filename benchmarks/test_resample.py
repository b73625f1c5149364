"""Upsampling and concatenation, forward and backward."""

FAMILY = "resample"


def test_resample(in_turn, case):
    in_turn(case)
