"""Compiles and launches CUDA kernels through CuPy, and checks and converts their arguments.

CuPy checks nothing: it passes the pointer of an array whatever its strides, a Python int as 64 bits and a float as a
double.

Shared by the kernels; the reference is called directly.
"""

from functools import cache, lru_cache
from pathlib import Path

import cupy as cp  # pyright: ignore[reportMissingImports]  (it is an extra)
import numpy as np

HERE = Path(__file__).parent
DEFAULT_SHARED = 32 * 1024  # bytes of dynamic shared memory without opt-in: 48 KB less what a kernel has statically
PRODUCT_PREAMBLES = ("common", "product")
PREAMBLES = {  # files that are prepended to each family's file
    "conv": PRODUCT_PREAMBLES, "winograd": (*PRODUCT_PREAMBLES, "winograd_transforms"), "norm": ("common",),
    "attention": ("common",), "elementwise": ("common",), "resample": ("common",), "optim": ("common",),
}  # fmt: skip
NULL = np.uint64(0)  # a null pointer


def launch(family, name, blocks, threads, *arguments, shared=0):
    """Run a kernel of family.cu on `blocks` (one to three ints) of `threads`; shared: bytes of dynamic shared memory.

    Arrays become pointers, None a null pointer, int and bool int32, float float32. Raises ValueError for an array that
    is not contiguous or has 2^31 elements or more, and for an int beyond 32 bits; TypeError for any other argument.
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
            raise ValueError(f"{name}: an array of shape {a.shape} is not contiguous, or has 2^31 elements or more")
        return a
    if a is None:
        return NULL
    if isinstance(a, float):
        return np.float32(a)
    raise TypeError(f"{name}: cannot pass a {type(a).__name__} to a kernel")


@lru_cache(4096)  # a training step converts ten thousand ints, the same ones each time
def _int32(name, a):
    if not -(2**31) <= a < 2**31:
        raise ValueError(f"{name}: {a} does not fit 32 bits")
    return np.int32(a)


@cache
def kernel(family, name, shared):
    """A compiled kernel, with `shared` bytes of dynamic shared memory allowed."""
    function = module(family).get_function(name)
    if shared > DEFAULT_SHARED:
        function.max_dynamic_shared_size_bytes = shared
    return function


@cache
def module(family):
    """family.cu, compiled with its preambles."""
    return cp.RawModule(code=source(family), options=("-std=c++17",))


def source(family):
    """The CUDA C++ of a family: its preambles, then family.cu."""
    return "".join((HERE / f"{name}.cu").read_text() for name in (*PREAMBLES[family], family))


def ceil_div(size, each):
    """size / each, rounded up."""
    return -(-size // each)


def aligned(*arrays):
    """Whether all arrays are aligned to 16 bytes."""
    return all(a.data.ptr % 16 == 0 for a in arrays)
