"""What every test may ask for: each backend in turn. A new backend is added here and nowhere else."""

import importlib
import os
import sys

import pytest
from threadpoolctl import threadpool_limits

from minidiff.engine.backend import Backend, get_backend

BACKENDS = ("numpy", "numba", "cupy")

if os.environ.get("MINIDIFF_TEST_GPU") != "real":
    sys.modules["cupy"] = importlib.import_module("fake_cupy")

threadpool_limits(1, "blas")  # NumPy's products are small here, and threads that wait for them spin


@pytest.fixture(params=BACKENDS)
def backend(request) -> Backend:
    return get_backend(request.param)
