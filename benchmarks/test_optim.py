"""Clipping, AdamW and the weights' EMA, over a whole network."""

FAMILY = "optim"


def test_optim(in_turn, case):
    in_turn(case)
