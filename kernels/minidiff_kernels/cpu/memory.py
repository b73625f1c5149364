"""A pool of memory: a training step reuses the memory of the previous one.

New memory costs a page fault for every 4 KiB: filling 67 MB takes 1.4 ms in reused memory and 16 ms in new memory. An
array from `empty` lies in a block; when the last view of it is deleted, the block returns to the pool.

Blocks are cut from segments, the smallest free block that is large enough first, and free neighbours become one again
(Knuth, The Art of Computer Programming, vol. 1, section 2.5). So arrays of many sizes share memory, and huge pages.
"""

import mmap
from bisect import bisect_left, bisect_right
from itertools import accumulate
from math import prod
from typing import NamedTuple

import numpy as np
from numba import get_num_threads

MIN_POOLED = 1 << 16  # bytes; below that NumPy's own allocator is as fast
PAGE = 1 << 12  # bytes; sizes of blocks are multiples
HUGE_PAGE = 1 << 21  # bytes: fewer TLB misses
SEGMENT = 1 << 26  # bytes at least; what was never written takes no memory
MOST = 1.1  # times the peak use: then free segments are dropped
CACHE_LINE = 64  # bytes; a vector across two lines takes two accesses to load or store


class Segment(NamedTuple):
    """Memory, and the range of its bytes that is cut into blocks: its first address, aligned to a huge page."""

    memory: np.ndarray
    address: int
    size: int


class Block:
    """A range of a segment; `end` is the address behind it."""

    __slots__ = ("segment", "address", "size", "end")

    def __init__(self, segment: Segment, address: int, size: int):
        self.segment, self.address, self.size, self.end = segment, address, size, address + size


def _new_segment(size: int) -> Segment:
    memory = _mapped(size + HUGE_PAGE)
    return Segment(memory, -(-memory.ctypes.data // HUGE_PAGE) * HUGE_PAGE, size)


def _mapped(size: int) -> np.ndarray:
    """Memory of a mapping of its own, in huge pages: what is freed goes back to the system, as the heap's may not."""
    if not hasattr(mmap, "MAP_ANONYMOUS"):  # Windows
        return np.empty(size, np.uint8)
    mapping = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapping, np.uint8)


class Pool:
    """Blocks in use and free ones, in segments that together stay below MOST times the peak use, if blocks allow it."""

    def __init__(self):
        self.released: list[Block] = []  # not yet among the free ones; a finaliser may run at any time, so it appends
        self.sizes: list[int] = []  # of the free blocks, ascending
        self.free: list[Block] = []  # of one size, the one released last is the last: it may still be in a cache
        self.starts: dict[int, Block] = {}  # the free blocks by address
        self.ends: dict[int, Block] = {}
        self.live = self.held = self.peak = 0  # bytes in use, of all segments, in use at most

    def acquire(self, size: int) -> Block:
        """A block of `size` bytes, a multiple of PAGE."""
        self._collect()
        if not self.sizes or self.sizes[-1] < size:
            self._grow(max(size, SEGMENT))
        block = self.free[bisect_right(self.sizes, self.sizes[bisect_left(self.sizes, size)]) - 1]
        self._remove(block)
        if block.size > size:
            self._insert(Block(block.segment, block.address + size, block.size - size))
            block = Block(block.segment, block.address, size)
        self.live += size
        self.peak = max(self.peak, self.live)
        return block

    def release(self, block: Block) -> None:
        """Give the block back."""
        self.released.append(block)

    def clear(self) -> None:
        """Drop all segments in which no block is in use."""
        self._collect()
        for block in [block for block in self.free if block.size == block.segment.size]:
            self._drop(block)

    def _collect(self) -> None:
        """Put released blocks among the free ones, together with free neighbours."""
        while self.released:
            block = self.released.pop(0)
            self.live -= block.size
            segment = block.segment
            before, after = self.ends.get(block.address), self.starts.get(block.end)
            if before is not None and before.segment is segment:
                self._remove(before)
                block = Block(segment, before.address, before.size + block.size)
            if after is not None and after.segment is segment:
                self._remove(after)
                block = Block(segment, block.address, block.size + after.size)
            self._insert(block)

    def _grow(self, size: int) -> None:
        """Add a segment, after dropping free ones, the largest first, until it fits below MOST times the peak."""
        size = -(-size // HUGE_PAGE) * HUGE_PAGE
        most = MOST * max(self.peak, self.live + size)
        for block in [block for block in reversed(self.free) if block.size == block.segment.size]:
            if self.held + size > most:
                self._drop(block)
        segment = _new_segment(size)
        self.held += size
        self._insert(Block(segment, segment.address, size))

    def _drop(self, block: Block) -> None:
        self._remove(block)
        self.held -= block.size

    def _insert(self, block: Block) -> None:
        i = bisect_right(self.sizes, block.size)
        self.sizes.insert(i, block.size)
        self.free.insert(i, block)
        self.starts[block.address] = self.ends[block.end] = block

    def _remove(self, block: Block) -> None:
        i = bisect_left(self.sizes, block.size)
        while self.free[i] is not block:
            i += 1
        del self.sizes[i], self.free[i], self.starts[block.address], self.ends[block.end]


pool = Pool()


class _Lease:
    """The base object of an array and its views: its finaliser releases the block."""

    __slots__ = ("block", "__array_interface__")

    def __init__(self, block: Block, shape):
        self.block = block
        self.__array_interface__ = {
            "shape": shape, "typestr": "<f4", "data": (block.address, False), "version": 3,
        }  # fmt: skip

    def __del__(self):
        pool.release(self.block)


def empty(shape):
    """An uninitialised float32 array."""
    return np.empty(shape, np.float32) if 4 * prod(shape) < MIN_POOLED else _pooled(shape)


def _pooled(shape):
    return np.asarray(_Lease(pool.acquire(-(-4 * prod(shape) // PAGE) * PAGE), tuple(shape)))


def scratch(sizes):
    """Scratch (threads, floats) with a part of each size in floats, and the offsets of the parts, on cache lines."""
    lines = (-(-size * 4 // CACHE_LINE) * CACHE_LINE // 4 for size in sizes)
    *offsets, total = accumulate(lines, initial=0)
    return tuple(offsets), _pooled((get_num_threads(), total))


def asarray(a):
    """A contiguous, writable float32 array of the values of `a` (for a read-only one Numba compiles kernels again)."""
    return np.require(a, np.float32, ("C", "W"))


def to_numpy(a):
    """`a` itself, which is in host memory."""
    return a


def later(a):
    """A function that returns `a`, which is in host memory."""
    return lambda: a
