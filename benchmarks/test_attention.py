"""Self-attention, forward and backward."""

FAMILY = "attention"


def test_attention(in_turn, case):
    in_turn(case)
