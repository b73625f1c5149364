"""Which CuPy the tests see: the real one where MINIDIFF_TEST_GPU says so (`make test-gpu`), else the simulator's."""

import os
import sys

ON_A_GPU = os.environ.get("MINIDIFF_TEST_GPU") == "1"

if not ON_A_GPU:
    import fake_cupy

    sys.modules["cupy"] = fake_cupy
