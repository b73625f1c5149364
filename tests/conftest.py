"""What every test may ask for: each backend in turn. A new backend is added here and nowhere else."""

import pytest
from hypothesis import settings
from threadpoolctl import threadpool_limits

from minidiff.engine.backend import Backend, get_backend

BACKENDS = ("numpy", "numba")

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")
threadpool_limits(1, "blas")  # NumPy's products are small here, and threads that wait for them spin


@pytest.fixture(params=BACKENDS)
def backend(request) -> Backend:
    return get_backend(request.param)
