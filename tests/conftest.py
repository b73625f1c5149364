"""What every test may ask for: each backend in turn. A new backend is added here and nowhere else."""

import os

import pytest
from threadpoolctl import threadpool_limits

from minidiff.engine.backend import Backend, get_backend

BACKENDS = ("numpy", "numba")

# Where tests share the cores with anything else, threads that spin while they wait make them ten times slower:
# Numba's shall sleep, and NumPy's products, small ones here, need one thread.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
threadpool_limits(1, "blas")


@pytest.fixture(params=BACKENDS)
def backend(request) -> Backend:
    return get_backend(request.param)
