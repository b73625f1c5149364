"""A whole training step: forward, backward, clipping, AdamW, EMA."""

FAMILY = "step"


def test_step(in_turn, case):
    in_turn(case)
