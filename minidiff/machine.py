"""The number of threads, and a description of the machine for reports."""

import os
import platform
import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
import threadpoolctl
from minidiff_kernels.cpu import jit, simd
from numba.np.ufunc.parallel import threading_layer

import minidiff.ranks as ranks
from minidiff.engine.backend import get_backend
from minidiff.errors import MinidiffError


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(threads: int | None, backend: str) -> int:
    """Set the number of threads of the kernels, None: one per core, of which ranks have equal shares; returns it.

    Without a number all ranks call it together, to learn who shares their cores.
    BLAS gets as many with the backend "numpy", and one with all others: its threads spin after each small product and
    would take cores from the kernels'. Raises MinidiffError if there are fewer cores, if the backend is unknown, or if
    Numba cannot load the threading layer.
    """
    get_backend(backend)
    most = min(cores(), jit.config.NUMBA_NUM_THREADS)
    threads = max(1, most // _sharing()) if threads is None else threads
    if not 1 <= threads <= most:
        raise MinidiffError(f"{threads} threads: this machine has 1 to {most}; choose a number in that range")
    try:
        numba.set_num_threads(threads)
    except ValueError as error:  # of NUMBA_THREADING_LAYER: a layer that is unknown, or not installed
        raise MinidiffError(f"{' '.join(str(error).split())} Or unset NUMBA_THREADING_LAYER.") from None
    threadpoolctl.threadpool_limits(threads if backend == "numpy" else 1)
    return threads


def _sharing() -> int:
    """How many ranks may use the same cores of the same machine as this one; 1 if the launcher binds them to others."""
    own = [socket.gethostname(), sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []]
    return ranks.gather(own).count(own)


def versions() -> dict[str, str]:
    """Versions and processor, which every state of a run records."""
    try:
        own = version("minidiff")
    except PackageNotFoundError:  # run from its source
        own = "not installed"
    return {
        "minidiff": own,
        "Python": platform.python_version(),
        "NumPy": version("numpy"),
        "Numba": version("numba"),
        "processor": f"{jit.config.CPU_NAME or llvm.get_host_cpu_name()}, {cores()} cores",
    }


def describe() -> dict[str, Any]:
    """Versions, threads and SIMD width, for `minidiff info`."""
    backend = get_backend("numba")
    backend.add(np.ones(1, np.float32), np.ones(1, np.float32))  # the first launch chooses the threading layer
    blas = [library for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
    return versions() | {
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
    """Whether the cache holds the compiled convolution kernels, which take longest to compile, of these sources."""
    return not jit.ENABLED or any(jit.cache_dir().rglob("conv.*.nbc"))
