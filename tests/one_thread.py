"""One thread while a module's tests run: threads that wait for a busy core take a hundred times as long."""

import numba
import pytest
import threadpoolctl


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """For every module that imports it; afterwards there are as many as before."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    with threadpoolctl.threadpool_limits(1):
        yield
    numba.set_num_threads(before)
