"""A whole training step: forward, backward, clipping, AdamW, moving average."""

FAMILY = "step"


def test_step(in_turn, case):
    in_turn(case)
