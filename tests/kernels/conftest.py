"""The `backend` fixture: every backend; the GPU's, in the simulator, with three orders of threads."""

import pytest
from simulator import Module
from which_cupy import ON_A_GPU

from minidiff.engine.backend import get_backend

ORDERS = {"cupy": 0} if ON_A_GPU else {"cupy": 0, "cupy-backward": 1, "cupy-shuffled": 2}


@pytest.fixture(params=("numpy", "numba", *ORDERS))
def backend(request):
    Module.order = ORDERS.get(request.param, 0)
    yield get_backend("cupy" if request.param in ORDERS else request.param)
    Module.order = 0
