"""Memory of arrays: `empty`, `asarray`, `to_numpy` and `later`."""

import gc
import importlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from against_torch import check
from kernel_cases import memory
from minidiff_kernels.cpu.memory import PAGE, SEGMENT, Pool
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
    """Also when the blocks are larger than what is asked for. Those in between are in use."""
    pool = Pool()
    blocks = [pool.acquire(1 << 20) for _ in range(6)]
    for i in (4, 0, 2):
        pool.release(blocks[i])
    assert pool.acquire(size).address == blocks[2].address


def test_free_neighbours_become_one_block():
    pool = Pool()
    blocks = [pool.acquire(SEGMENT // 4) for _ in range(4)]
    for i in (1, 3, 2):
        pool.release(blocks[i])
    assert pool.acquire(3 * SEGMENT // 4).address == blocks[1].address
    pool.release(blocks[0])
    assert pool.acquire(SEGMENT // 4).address == blocks[0].address
    assert pool.held == pool.live == SEGMENT


def test_blocks_in_use_never_overlap():
    """In a random order of sizes, requests and releases; whatever is released is found again."""
    rng, pool, live = np.random.default_rng(0), Pool(), {}
    for _ in range(3000):
        if live and rng.random() < 0.5:
            pool.release(live.pop(list(live)[rng.integers(len(live))]))
        else:
            block = pool.acquire(PAGE * int(2 ** rng.uniform(4, 13)))
            live[block.address] = block
        ranges = sorted((block.address, block.end) for block in live.values())
        assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
        assert all(
            b.segment.address <= b.address and b.end <= b.segment.address + b.segment.size for b in live.values()
        )
    for block in live.values():
        pool.release(block)
    pool.clear()
    assert (pool.live, pool.held, pool.free, pool.starts, pool.ends) == (0, 0, [], {}, {})


def test_free_segments_make_room_for_a_large_block():
    """So that what is held stays below MOST times the peak use."""
    pool = Pool()
    for size in (SEGMENT, 2 * SEGMENT, 3 * SEGMENT):
        pool.release(pool.acquire(size))
        assert pool.held == size
    small = pool.acquire(PAGE)
    large = pool.acquire(3 * SEGMENT)
    assert pool.held == 6 * SEGMENT  # the small one is in the way
    pool.release(small)
    pool.release(large)
    pool.clear()
    assert pool.held == 0


@pytest.mark.skipif(not STATUS.exists(), reason="needs /proc, of Linux")
def test_cleared_segments_go_back_to_the_system():
    """All but less than a segment, although a later one is in use."""
    pool, rows = Pool(), 3
    before = anonymous_bytes()
    blocks = [pool.acquire(SEGMENT) for _ in range(rows + 1)]
    for block in blocks:
        block.segment.memory[:] = 1
    kept = blocks.pop()
    assert anonymous_bytes() - before > rows * SEGMENT
    for block in blocks:
        pool.release(block)
    del blocks, block
    pool.clear()
    assert anonymous_bytes() - before < 2 * SEGMENT
    assert pool.held == kept.size


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
