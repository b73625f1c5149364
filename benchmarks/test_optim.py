"""Clipping, AdamW and the moving average of the weights, over a whole network."""

FAMILY = "optim"


def test_optim(in_turn, case):
    in_turn(case)
