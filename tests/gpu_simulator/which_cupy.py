"""Selects CuPy for the tests: the real one if MINIDIFF_TEST_GPU=1 (`make test-gpu`), else fake_cupy."""

import os
import sys

ON_A_GPU = os.environ.get("MINIDIFF_TEST_GPU") == "1"

if not ON_A_GPU:
    import fake_cupy

    sys.modules["cupy"] = fake_cupy
