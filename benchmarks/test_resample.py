"""Upsampling and joining, forward and backward."""

FAMILY = "resample"


def test_resample(in_turn, case):
    in_turn(case)
