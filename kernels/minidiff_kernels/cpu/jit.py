"""How every kernel here is compiled: lazily, threaded by OpenMP where there is one, cached by content."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import config as _config
from numba.core.caching import IndexDataCacheFile
from numba.core.registry import cpu_target as _cpu_target
from numba.core.serialize import loads

config: Any = _config  # Numba makes its attributes as it reads the environment
cpu_target: Any = _cpu_target  # and these as they are first asked for

ENABLED = not config.DISABLE_JIT  # set by NUMBA_DISABLE_JIT=1, for debuggers

# What may be assumed of floating point: that a b + c may be rounded once, and that zeros have no sign. Not "nnan" or
# "ninf": NaN in must give NaN out. Not "reassoc" or "arcp": a compiled kernel and the same one from the cache have
# been optimised a different number of times, and sums in another order are other bits.
FAST = {"contract", "nsz"}

# A parallel launch costs 2 microseconds under OpenMP and 110 under Numba's own work queue.
if "NUMBA_THREADING_LAYER" not in os.environ:
    config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]

# Threads that wait for others spin for a fifth of a millisecond, about as long as Python takes from one launch to the
# next, and then sleep. Spinning on, OpenMP's default, makes a step ten times slower as soon as another program wants
# one of the cores; sleeping at once costs 15 to 50 microseconds a launch, a sixth of a step of one picture.
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "6000"}
if "OMP_WAIT_POLICY" in os.environ:
    WAITING = {}
for _name, _value in WAITING.items():
    os.environ.setdefault(_name, _value)


def user_cache_dir() -> Path:
    """The folder in which programs of this user may keep what can be made again.

    Of a user without a home it is one that cannot be made: nothing is kept.
    """
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.devnull, ".cache")


@cache
def target() -> tuple[str, str, str]:
    """What Numba compiles for: the system, the name of the processor, and its features as "+avx,+avx2,-sse4a"."""
    return cpu_target.target_context.codegen().magic_tuple()


@cache
def cache_dir() -> Path:
    """Where compiled kernels are kept, one folder for every state of the sources and every processor.

    Numba looks at the file of a function alone, and would run old code after an edit of a helper in another.
    """
    digest = hashlib.sha256(repr((numba.__version__, target())).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    root = Path(config.CACHE_DIR) if config.CACHE_DIR else user_cache_dir() / "minidiff" / "kernels"
    return root / digest.hexdigest()[:16]


@cache
def _writable() -> bool:
    """Whether compiled kernels can be kept; says so once if not."""
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cache_dir()).close()
    except OSError as error:
        reason = f"{cache_dir()}: {error.strerror}; set NUMBA_CACHE_DIR to a folder that can be written"
        print(f"minidiff: compiled kernels are not kept, {reason}", file=sys.stderr)
        return False
    return True


class _Entries(IndexDataCacheFile):
    """One file for each function and its argument types, none that lists them.

    Numba's list is a place where two processes can exchange the names of their files and then run the wrong code,
    and a file that was cut short ends the program. Here a damaged file is as good as none.
    """

    def _file(self, key) -> Path:
        number = int.from_bytes(hashlib.sha256(repr((self._source_stamp, key)).encode()).digest()[:8])
        return Path(self._data_path(self._data_name(number)))

    def load(self, key):
        try:
            content = self._file(key).read_bytes()
        except OSError:
            return None
        digest, data = content[:32], content[32:]
        return loads(data) if hashlib.sha256(data).digest() == digest else None

    def save(self, key, data):
        data = self._dump(data)
        with suppress(OSError), self._open_for_write(self._file(key)) as file:  # a full disk costs time, no more
            file.write(hashlib.sha256(data).digest() + data)


@contextmanager
def _cached_there():
    """Numba reads the place of its cache when a function is decorated."""
    before, config.CACHE_DIR = config.CACHE_DIR, str(cache_dir())
    try:
        yield
    finally:
        config.CACHE_DIR = before


def kernel(function: Callable) -> Callable[..., Any]:
    """Compile a function whose `prange` loops run on all threads.

    It keeps Python's lock: were it to let go of it at every launch, a second thread that prepares batches
    would make it wait up to 5 ms each time to have it back, a thousand times a step.
    """
    compiled: Any = numba.njit(function, parallel=True, fastmath=FAST, error_model="numpy")
    if ENABLED and _writable():
        with _cached_there():
            compiled.enable_caching()
        files = compiled._cache
        files._cache_file = _Entries(
            files.cache_path, files._impl.filename_base, files._impl.locator.get_source_stamp()
        )
    return compiled


def helper(function: Callable) -> Callable[..., Any]:
    """Compile a function that kernels call within a thread."""
    return numba.njit(function, fastmath=FAST, error_model="numpy")
