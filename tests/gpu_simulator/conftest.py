"""These tests are about the simulator; on a GPU there is none."""

from which_cupy import ON_A_GPU

collect_ignore_glob = ["test_*.py"] if ON_A_GPU else []
