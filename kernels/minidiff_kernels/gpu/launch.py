"""The one place where kernels are started: it compiles them, and packs their arguments as they want them.

CuPy itself looks at nothing: it passes the bare pointer of an array, whatever its strides, a Python int as 64 bits and
a float as a double.
"""

from functools import cache, lru_cache
from pathlib import Path

import cupy as cp  # pyright: ignore[reportMissingImports]  (it is an extra)
import numpy as np

HERE = Path(__file__).parent
FREE_SHARED = 32 * 1024  # bytes of dynamic shared memory that a block gets without asking, beside what it has by itself
PRODUCTS = ("common", "product")
IN_FRONT = {  # what stands in front of each family's file
    "conv": PRODUCTS, "winograd": PRODUCTS, "norm": ("common",), "attention": ("common",), "elementwise": ("common",),
    "resample": ("common",), "optim": ("common",),
}  # fmt: skip
NOTHING = np.uint64(0)  # a null pointer


def launch(family, name, blocks, threads, *arguments, shared=0):
    """Run a kernel of family.cu on `blocks` (up to three numbers) of `threads`, with `shared` bytes of dynamic memory.

    Arrays become pointers, None a null pointer, int and bool int32, float float32. Raises ValueError for an array that
    is not contiguous or has 2^31 numbers or more, and for an int beyond 32 bits; TypeError for anything else.
    """
    blocks = blocks if isinstance(blocks, tuple) else (blocks,)
    if all(blocks):
        packed = tuple(_packed(name, a) for a in arguments)
        kernel(family, name, shared)(blocks, (threads,), packed, shared_mem=shared)


def _packed(name, a):
    if isinstance(a, int):
        return _int32(name, a)
    if isinstance(a, cp.ndarray):
        if not a.flags.c_contiguous or a.size >= 2**31:
            raise ValueError(f"{name}: an array of shape {a.shape} is not contiguous, or larger than kernels can count")
        return a
    if a is None:
        return NOTHING
    if isinstance(a, float):
        return np.float32(a)
    raise TypeError(f"{name}: cannot pass a {type(a).__name__} to a kernel")


@lru_cache(4096)  # a step packs ten thousand of them, and always the same ones
def _int32(name, a):
    if not -(2**31) <= a < 2**31:
        raise ValueError(f"{name}: {a} does not fit 32 bits")
    return np.int32(a)


@cache
def kernel(family, name, shared):
    """A kernel, compiled, that may have so much shared memory."""
    function = module(family).get_function(name)
    if shared > FREE_SHARED:
        function.max_dynamic_shared_size_bytes = shared
    return function


@cache
def module(family):
    """family.cu, compiled with what stands in front of it."""
    return cp.RawModule(code=source(family), options=("-std=c++17",))


def source(family):
    """The CUDA C++ of a family of kernels."""
    return "".join((HERE / f"{name}.cu").read_text() for name in (*IN_FRONT[family], family))


def blocks_of(size, each):
    """How many blocks it takes."""
    return -(-size // each)


def aligned(*arrays):
    """Whether all begin where 16 bytes may be read at once."""
    return all(a.data.ptr % 16 == 0 for a in arrays)
