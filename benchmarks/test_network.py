"""One evaluation of the network without a tape, for 1, 16 and 64 pictures."""

FAMILY = "network"


def test_network(in_turn, case):
    in_turn(case)
