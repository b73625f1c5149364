"""Convolution, and its gradients by the input and by the weights."""

FAMILY = "conv"


def test_conv(in_turn, case):
    in_turn(case)
