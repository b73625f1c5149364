"""A pool of memory blocks: a training step reuses the memory of the previous one.

New memory costs a page fault for every 4 KiB: filling 67 MB takes 1.4 ms in a reused block and 16 ms in a new one.
An array from `empty` lies in a block; when the last view of it is deleted, the block returns to the pool.
"""

import mmap
from bisect import bisect_left, bisect_right
from itertools import accumulate
from math import prod
from typing import NamedTuple

import numpy as np
from numba import get_num_threads

MIN_POOLED = 1 << 16  # bytes; below that NumPy's own allocator is as fast
HUGE_PAGE = 1 << 21  # bytes: fewer TLB misses
MOST = 1.1  # times the peak use; the tenth is for blocks that are larger than their arrays, and blocks between two uses
LARGEST_REUSED = 4  # times the size of the array
MOST_WASTED = 1 << 25  # bytes of a block beyond its array
CACHE_LINE = 64  # bytes; a vector across two lines takes two accesses to load or store


class Block(NamedTuple):
    """Memory, its first aligned address (cached: `ndarray.ctypes` is slow) and its size in bytes."""

    memory: np.ndarray
    address: int
    size: int


def _aligned(size: int) -> Block:
    """`size` bytes of new memory, aligned to a cache line, or to a huge page from 1 MiB on."""
    alignment = CACHE_LINE if size < HUGE_PAGE // 2 else HUGE_PAGE
    memory = np.empty(size + alignment, np.uint8) if alignment == CACHE_LINE else _mapped(size + alignment)
    return Block(memory, -(-memory.ctypes.data // alignment) * alignment, size)


def _mapped(size: int) -> np.ndarray:
    """Memory of a mapping of its own, in huge pages: what is freed goes back to the system, as the heap's may not."""
    if not hasattr(mmap, "MAP_ANONYMOUS"):  # Windows
        return np.empty(size, np.uint8)
    mapping = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapping, np.uint8)


class Pool:
    """Free blocks by size. Blocks in use and free blocks together stay below MOST times the peak use.

    A block may be reused for an array of a quarter of its size: fewer blocks then serve arrays of many sizes. But not
    one that is larger by more than MOST_WASTED: the few arrays of an autoencoder's last level count.
    """

    def __init__(self):
        self.sizes: list[int] = []  # of the free blocks, ascending
        self.free: list[Block] = []  # of one size, the one released last is the last: it may still be in a cache
        self.live = self.idle = self.peak = 0  # bytes

    def acquire(self, size: int) -> Block:
        """A block of at least `size` bytes, free or new."""
        i = bisect_left(self.sizes, size)  # the smallest free block that is large enough
        if i < len(self.sizes) and self.sizes[i] <= min(LARGEST_REUSED * size, size + MOST_WASTED):
            block = self._take(bisect_right(self.sizes, self.sizes[i]) - 1)  # of its size, the one released last
        else:
            self._make_room(size)
            block = _aligned(size)
        self.live += block.size
        self.peak = max(self.peak, self.live)
        return block

    def release(self, block: Block) -> None:
        """Put the block back among the free ones."""
        self.live -= block.size
        self.idle += block.size
        i = bisect_right(self.sizes, block.size)
        self.sizes.insert(i, block.size)
        self.free.insert(i, block)

    def clear(self) -> None:
        """Drop all free blocks."""
        self.sizes, self.free, self.idle = [], [], 0

    def _take(self, i: int) -> Block:
        self.idle -= self.sizes.pop(i)
        return self.free.pop(i)

    def _make_room(self, size: int) -> None:
        """Drop free blocks, the largest first, until a new one of `size` bytes fits."""
        most = MOST * max(self.peak, self.live + size)
        while self.free and self.live + self.idle + size > most:
            self._take(-1)


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
    return np.asarray(_Lease(pool.acquire(-(-4 * prod(shape) // 4096) * 4096), tuple(shape)))


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
