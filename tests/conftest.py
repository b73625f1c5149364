"""What every test may ask for: each backend in turn. A new backend is added here and nowhere else."""

import pytest

from minidiff.engine.backend import Backend, get_backend

BACKENDS = ("numpy", "numba")


@pytest.fixture(params=BACKENDS)
def backend(request) -> Backend:
    return get_backend(request.param)
