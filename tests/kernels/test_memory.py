"""Memory of arrays: `empty`, `asarray`, `to_numpy` and `later`."""

import gc
import importlib
from pathlib import Path

import numpy as np
import pytest
from against_torch import check
from kernel_cases import memory
from minidiff_kernels.cpu.memory import Pool
from which_cupy import ON_A_GPU

from minidiff.engine.backend import get_backend

STATUS = Path("/proc/self/status")
CASES = [memory(1), memory(2, 5, 7, 3), memory(3, 200, 201)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_empty_holds_what_is_written(backend, case):
    check(backend, case)


def test_empty_of_size_zero(backend):
    assert backend.empty((0, 4)).shape == (0, 4)
    assert backend.empty(()).shape == ()


@pytest.mark.parametrize("a", [3, [1, 2], np.arange(6).reshape(2, 3).T, np.ones((2, 3), bool), np.float32(1.5)])
def test_asarray_gives_contiguous_floats_of_the_same_values(backend, a):
    got = backend.asarray(a)
    assert got.dtype == np.float32 and got.flags.c_contiguous
    np.testing.assert_array_equal(backend.to_numpy(got), a)


@pytest.mark.parametrize("shape", [(), (3, 5)])
def test_later_returns_the_values(backend, shape):
    a = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    host = backend.later(backend.asarray(a))()
    assert type(host) is np.ndarray
    np.testing.assert_array_equal(host, a, strict=True)


def test_a_view_keeps_its_memory(backend):
    """New arrays of the same size never overlap a view that is still in use."""
    shape = (64, 1024)
    views = []
    for i in range(8):
        a = backend.empty(shape)
        a[...] = i
        views.append(a[i : i + 1].reshape(-1))
        del a
    fresh = [backend.empty(shape) for _ in range(8)]
    for a in fresh:
        a[...] = -1
    assert [float(v.min()) for v in views] == [float(v.max()) for v in views] == list(range(8))


def test_numba_reuses_a_block_at_once():
    """A deleted array's block is reused for the next one of its size, by reference counting alone."""
    empty = get_backend("numba").empty
    gc.disable()
    try:
        a = empty((256, 1024))
        address = a.ctypes.data
        del a
        assert empty((256, 1024)).ctypes.data == address
    finally:
        gc.enable()


@pytest.mark.parametrize("size", [1 << 20, 1 << 19])
def test_of_blocks_of_one_size_the_one_released_last_is_reused(size):
    """Also when the blocks are larger than what is asked for."""
    pool = Pool()
    blocks = [pool.acquire(1 << 20) for _ in range(3)]
    for i in (2, 0, 1):
        pool.release(blocks[i])
    assert pool.acquire(size).address == blocks[1].address


def test_a_block_is_not_reused_for_an_array_much_smaller():
    """By a factor, and by bytes."""
    pool = Pool()
    for block, size, reused in ((1 << 20, 1 << 18, True), (1 << 20, 1 << 17, False), (1 << 27, 1 << 26, False)):
        released = pool.acquire(block)
        pool.release(released)
        again = pool.acquire(size)
        assert (again is released) == reused
        pool.release(again)
        pool.clear()


@pytest.mark.skipif(not STATUS.exists(), reason="needs /proc, of Linux")
def test_cleared_blocks_go_back_to_the_system():
    """All but less than a block, although a later block is in use."""
    pool, size, rows = Pool(), 3 << 20, 20
    before = anonymous_bytes()
    blocks = [pool.acquire(size) for _ in range(rows)]
    for block in blocks:
        block.memory[:] = 1
    kept = pool.acquire(size)
    kept.memory[:] = 1
    assert anonymous_bytes() - before > rows * size
    for block in blocks:
        pool.release(block)
    del blocks, block
    pool.clear()
    assert anonymous_bytes() - before < 3 * size


def anonymous_bytes() -> int:
    return next(1024 * int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))


@pytest.mark.skipif(ON_A_GPU, reason="needs the simulator, whose copies end on request")
def test_host_memory_of_a_pending_copy_is_kept():
    gpu = get_backend("cupy")
    module = importlib.import_module(gpu.later.__module__)
    gpu.later(gpu.asarray(1.0))
    first = module.pending[-1][0]
    first.done = False
    gpu.later(gpu.asarray(2.0))
    assert first in [event for event, _ in module.pending]
    first.done = True
    gpu.later(gpu.asarray(3.0))
    assert first not in [event for event, _ in module.pending] and len(module.pending) == 1
