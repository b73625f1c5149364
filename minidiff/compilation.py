"""Compilation of the kernels that a command needs, before it starts, with a progress bar."""

import logging
from collections.abc import Callable
from contextlib import suppress

import numba
import numpy as np
from minidiff_kernels import ahead
from minidiff_kernels.cpu import jit
from minidiff_kernels.cpu.memory import pool

from minidiff.errors import MinidiffError
from minidiff.progress import progress

MOST_PROCESSES = 4  # the kernel that takes longest is a fifth of all; each process takes 420 MB of memory

log = logging.getLogger(__name__)


def compile_ahead(backend: str, dry_run: Callable[[], object]) -> None:
    """Compile the kernels that `dry_run` launches on a backend of Numba, in as many processes as there are threads.

    Those that are compiled or cached are left out; of no other backend is anything compiled. The kernels do not run
    (`jit.dry_run`), so what the function computes is arbitrary, and it must not change anything in use.
    """
    if not backend.startswith("numba") or not jit.ENABLED:
        return
    with jit.dry_run() as launches, np.errstate(all="ignore"):  # arbitrary numbers may overflow
        with suppress(MinidiffError, MemoryError):  # the work itself fails too, and says where
            dry_run()
    pool.clear()  # the dry run's arrays may be of other sizes than the work's
    if needed := ahead.missing(launches):
        with progress("compiling kernels", len(needed)) as tick:
            failed = ahead.compile_ahead(needed, min(numba.get_num_threads(), MOST_PROCESSES), tick)
        if failed:
            codes = ", ".join(map(str, failed))
            log.info(f"Processes that compile kernels ended with exit code {codes}; this one took their place.")
