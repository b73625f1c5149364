"""Tests of the simulator, which is not used on a GPU."""

from which_cupy import ON_A_GPU

collect_ignore_glob = ["test_*.py"] if ON_A_GPU else []
