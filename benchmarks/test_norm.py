"""Group normalisation with SiLU, forward and backward."""

FAMILY = "norm"


def test_norm(in_turn, case):
    in_turn(case)
