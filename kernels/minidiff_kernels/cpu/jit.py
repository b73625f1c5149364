"""Compilation of the CPU kernels: lazy, multi-threaded (OpenMP where available), cached on disk.

Shared by the kernels; the reference is not compiled.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numba
from numba.core import config as _config
from numba.core.caching import IndexDataCacheFile
from numba.core.codegen import JITCodeLibrary
from numba.core.registry import cpu_target as _cpu_target
from numba.core.serialize import loads

config: Any = _config  # Any, since Numba creates the attributes of both at run time
cpu_target: Any = _cpu_target

ENABLED = not config.DISABLE_JIT  # set by NUMBA_DISABLE_JIT=1, for debugging

# Fast-math flags: a b + c may be rounded once, and the sign of zero may be ignored. Not "nnan" or "ninf": NaN in must
# give NaN out. Not "reassoc" or "arcp": a kernel just compiled and the same one loaded from the cache have been
# optimised a different number of times, and a sum in another order has other bits.
FAST = {"contract", "nsz"}
# Kernels are called from Python alone: without entries for C they compile faster.
OPTIONS: Any = {"fastmath": FAST, "error_model": "numpy", "no_cfunc_wrapper": True}

# A parallel launch costs 2 microseconds under OpenMP and 110 under Numba's own work queue.
if "NUMBA_THREADING_LAYER" not in os.environ:
    config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]

# Waiting threads spin for 0.2 ms, about the time from one launch to the next, and then sleep. If they spin longer
# (OpenMP's default), a step is ten times slower as soon as another program needs one of the cores; if they sleep at
# once, a launch costs 15 to 50 microseconds more, a sixth of a training step of one image.
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "6000"}
if "OMP_WAIT_POLICY" in os.environ:
    WAITING = {}
for _name, _value in WAITING.items():
    os.environ.setdefault(_name, _value)


def user_cache_dir() -> Path:
    """The user's cache directory: the platform's convention for files that can be created again.

    For a user without a home directory it is one that cannot be made, so that nothing is cached.
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
    """What Numba compiles for: target triple, processor name, and features as "+avx,+avx2,-sse4a"."""
    return cpu_target.target_context.codegen().magic_tuple()


@cache
def cache_dir() -> Path:
    """The folder of compiled kernels, named by a hash of all kernel sources, Numba's version and the processor.

    Numba's own cache checks only the file of the function, and would run old code after an edit of a helper elsewhere.
    """
    digest = hashlib.sha256(repr((numba.__version__, target())).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    root = Path(config.CACHE_DIR) if config.CACHE_DIR else user_cache_dir() / "minidiff" / "kernels"
    return root / digest.hexdigest()[:16]


@cache
def writable() -> bool:
    """Whether the cache directory can be written; prints one line to stderr if not."""
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cache_dir()).close()
    except OSError as error:
        reason = f"{cache_dir()}: {error.strerror}; set NUMBA_CACHE_DIR to a folder that can be written"
        print(f"minidiff: compiled kernels are not kept, {reason}", file=sys.stderr)
        return False
    return True


class ChecksummedFiles(IndexDataCacheFile):
    """Numba's cache without its index file: the name of a data file is a hash of function and argument types.

    With an index, two processes that write at once can exchange each other's file names and run the wrong code, and a
    truncated file raises. Here each file starts with its checksum, and a damaged file counts as missing.
    """

    def _file(self, key) -> Path:
        number = int.from_bytes(hashlib.sha256(repr((self._source_stamp, key)).encode()).digest()[:8])
        return Path(self._data_path(self._data_name(number)))

    def has(self, key) -> bool:
        return self._file(key).exists()

    def load(self, key):
        try:
            content = self._file(key).read_bytes()
        except OSError:
            return None
        digest, data = content[:32], content[32:]
        return loads(data) if hashlib.sha256(data).digest() == digest else None

    def save(self, key, data):
        data = self._dump(data)
        with (
            suppress(OSError),
            self._open_for_write(self._file(key)) as file,
        ):  # on a full disk the kernel is compiled again
            file.write(hashlib.sha256(data).digest() + data)


@contextmanager
def _cache_directory_set():
    """Set the cache directory that Numba reads when a function is decorated."""
    before, config.CACHE_DIR = config.CACHE_DIR, str(cache_dir())
    try:
        yield
    finally:
        config.CACHE_DIR = before


def kernel(function: Callable) -> Callable[..., Any]:
    """Compile a function whose `prange` loops run on all threads.

    It holds the GIL: a kernel that released it would wait up to 5 ms at each of a thousand launches a step to get it
    back, while a second thread prepares batches.
    """
    compiled: Any = numba.njit(function, parallel=True, **OPTIONS)
    if ENABLED and writable():
        with _cache_directory_set():
            compiled.enable_caching()
        files = compiled._cache
        files._cache_file = ChecksummedFiles(
            files.cache_path, files._impl.filename_base, files._impl.locator.get_source_stamp()
        )
    if ENABLED:
        compiled._compile_for_args = partial(_compile_or_record, compiled, compiled._compile_for_args)
    return compiled


def helper(function: Callable) -> Callable[..., Any]:
    """Compile a function that kernels call within a thread; Python gets no entry to it either."""
    options: Any = OPTIONS | {"no_cpython_wrapper": True}
    return numba.njit(function, **options)


# In the names of Numba's libraries of a prange loop: its body, and the two wrappers.
OF_A_LOOP = "__numba_parfor_gufunc", "numba.np.ufunc.wrappers", "parallelgufuncwrapper"


class _Library(JITCodeLibrary):
    """The code of a function, which LLVM optimises once: a helper's by itself, a loop's within its kernel.

    Numba makes a function of a `prange` loop, in two wrappers, and has each of the three optimised, with a copy of all
    helpers in it, before the kernel that holds them. That takes most of LLVM's time, and makes the kernel no faster.
    """

    def _optimize_functions(self, ll_module):
        """Only what Numba does besides: the passes over each function are among those over the module."""
        codegen: Any = self._codegen
        ll_module.data_layout = codegen._data_layout

    def _optimize_final_module(self):
        if not any(part in self.name for part in OF_A_LOOP):
            super()._optimize_final_module()


@contextmanager
def _optimised_once():
    """Within this block Numba compiles into such libraries."""
    codegen = cpu_target.target_context.codegen()
    before, codegen._library_class = codegen._library_class, _Library
    try:
        yield
    finally:
        codegen._library_class = before


class Launch(NamedTuple):
    """A kernel and the Numba types of its arguments."""

    kernel: Any
    types: tuple[Any, ...]

    @property
    def is_cached(self) -> bool:
        files = self.kernel._cache
        return writable() and files._cache_file.has(files._index_key(self.types, self.kernel.targetctx.codegen()))

    def compile(self) -> None:
        """Compile the kernel for these types, and keep it in the cache."""
        with _optimised_once():
            self.kernel.compile(self.types)


_recorded: dict[Launch, None] | None = None  # during a dry run: the launches so far, in order


@contextmanager
def dry_run():
    """Within this block kernels that are not compiled yet are not run: yields their launches, a dict without values.

    Their results are whatever memory held. Nothing that is computed in the block may be kept, and no array that a
    kernel writes may be one that is in use.
    """
    global _recorded
    before, _recorded = _recorded, {}
    try:
        yield _recorded
    finally:
        _recorded = before


def _compile_or_record(kernel, compile_for_args, *args):
    """What a kernel does when it is called with types that it is not compiled for; returns the function to call."""
    if _recorded is None:
        with _optimised_once():
            return compile_for_args(*args)
    _recorded[Launch(kernel, tuple(map(kernel.typeof_pyval, args)))] = None
    return lambda *_: None
