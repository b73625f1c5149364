"""Convolution, its gradient by the input, its gradient by the weights."""

FAMILY = "conv"


def test_conv(in_turn, case):
    in_turn(case)
