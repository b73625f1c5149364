"""One evaluation of the network without a tape, for batches of 1, 16 and 64 images."""

FAMILY = "network"


def test_network(in_turn, case):
    in_turn(case)
