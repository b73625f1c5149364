"""How every kernel here is compiled: lazily, threaded by OpenMP where there is one, cached by content."""

import hashlib
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import config as _config

config: Any = _config  # Numba makes its attributes as it reads the environment

ENABLED = not config.DISABLE_JIT  # set by NUMBA_DISABLE_JIT=1, for debuggers

# What may be assumed of floating point. Not "nnan" or "ninf": NaN in must give NaN out.
FAST = {"reassoc", "contract", "arcp", "nsz"}

# A parallel launch costs 2 microseconds under OpenMP and 110 under Numba's own work queue.
if "NUMBA_THREADING_LAYER" not in os.environ:
    config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]

# Threads that wait for others sleep. Spinning, OpenMP's default, is 4 % faster on an idle machine, and ten times
# slower as soon as another program wants one of the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def user_cache_dir() -> Path:
    """The folder in which programs of this user may keep what can be made again."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


@cache
def cache_dir() -> Path:
    """Where compiled kernels are kept, one folder for every state of the sources.

    Numba looks at the file of a function alone, and would run old code after an edit of a helper in another.
    """
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    root = Path(config.CACHE_DIR) if config.CACHE_DIR else user_cache_dir() / "minidiff" / "kernels"
    return root / digest.hexdigest()[:16]


@contextmanager
def _cached_there():
    """Numba reads the place of its cache when a function is decorated."""
    folder = str(cache_dir())
    before, config.CACHE_DIR = config.CACHE_DIR, folder
    try:
        yield
    finally:
        config.CACHE_DIR = before


def kernel(function: Callable) -> Callable[..., Any]:
    """Compile a function whose `prange` loops run on all threads.

    It keeps Python's lock: were it to let go of it at every launch, a second thread that prepares batches
    would make it wait up to 5 ms each time to have it back, a thousand times a step.
    """
    with _cached_there():
        return numba.njit(function, parallel=True, cache=True, fastmath=FAST, error_model="numpy")


def helper(function: Callable) -> Callable[..., Any]:
    """Compile a function that kernels call within a thread."""
    return numba.njit(function, fastmath=FAST, error_model="numpy")
