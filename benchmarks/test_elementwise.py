"""SiLU and elementwise addition."""

FAMILY = "elementwise"


def test_elementwise(in_turn, case):
    in_turn(case)
