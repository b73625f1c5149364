"""Threads, and what this machine is: the numbers that stand beside every result."""

import os
import platform
import sys
from importlib.metadata import version
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
import threadpoolctl
from minidiff_kernels.cpu import jit, simd
from numba.np.ufunc.parallel import threading_layer

from minidiff.engine.backend import get_backend
from minidiff.errors import MinidiffError


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(threads: int | None, backend: str) -> int:
    """Let the kernels run on that many threads, all cores if None; returns how many those are.

    BLAS gets them under "numpy", which is made of it, and one under "numba": its threads spin after every
    small product and would fight the kernels' own. Raises MinidiffError for more threads than there are, for an
    unknown backend, and for a threading layer that Numba cannot load.
    """
    get_backend(backend)
    most = min(cores(), jit.config.NUMBA_NUM_THREADS)
    threads = most if threads is None else threads
    if not 1 <= threads <= most:
        raise MinidiffError(f"{threads} threads: this machine gives 1 to {most}")
    try:
        numba.set_num_threads(threads)
    except ValueError as error:  # of NUMBA_THREADING_LAYER: a layer that is unknown, or not installed
        raise MinidiffError(f"{' '.join(str(error).split())} Or unset NUMBA_THREADING_LAYER.") from None
    threadpoolctl.threadpool_limits(threads if backend == "numpy" else 1)
    return threads


def describe() -> dict[str, Any]:
    """Versions, threads and vector units, for `minidiff info`."""
    backend = get_backend("numba")
    backend.add(np.ones(1, np.float32), np.ones(1, np.float32))  # a first launch chooses the threading layer
    blas = [library for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
    return {
        "minidiff": version("minidiff"),
        "Python": platform.python_version(),
        "NumPy": version("numpy"),
        "Numba": version("numba"),
        "processor": f"{jit.config.CPU_NAME or llvm.get_host_cpu_name()}, {cores()} cores",
        "backends": "numpy (reference), numba (default"
        + (")" if jit.ENABLED else "; the reference without its compiler)"),
        "threads": numba.get_num_threads(),
        "threading layer": threading_layer() if jit.ENABLED else "none: NUMBA_DISABLE_JIT is set",
        "vector width": f"{simd.LANES} float32 ({32 * simd.LANES} bits)",
        "BLAS": ", ".join(f"{lib['internal_api']} {lib['version']}" for lib in blas),
        "kernel cache": str(jit.cache_dir()),
        "platform": f"{sys.platform} {platform.machine()}",
    }


def compiled() -> bool:
    """Whether the kernels of convolution, which take longest to compile, lie in the cache of these sources."""
    return not jit.ENABLED or any(jit.cache_dir().rglob("conv.*.nbc"))
