"""Compilation ahead of use, by several processes at once, into the cache.

A kernel compiles at its first call, one after the other, on one core. So a program dry-runs what it is about to do
(`jit.dry_run`), and has the launches that are neither compiled nor cached compiled here:

    with jit.dry_run() as launches:
        network(x_t, t)
    compile_ahead(missing(launches), processes=2)

Each process is this file run as a program. It takes one launch a line on stdin, and answers each with a line; the end
of stdin, which is also that of the process that reads the answers, ends it. It runs no kernel.
"""

import gc
import importlib
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable
from threading import Thread
from typing import Any, TextIO

from numba.core.codegen import JITCodeLibrary
from numba.core.cpu import CPUContext
from numba.core.serialize import dumps, loads

from .cpu import jit

_dynfunc: Any = importlib.import_module("numba._dynfunc")  # a C extension, which type checkers do not see

DONE = "done\n"


def missing(launches: Iterable[jit.Launch]) -> list[jit.Launch]:
    """The launches that are not in the cache."""
    return [launch for launch in launches if not launch.is_cached]


def compile_ahead(launches: Iterable[jit.Launch], processes: int, tick: Callable[[], object]) -> list[int]:
    """Compile the launches into the cache, in so many processes; tick() is called for each that is done.

    What the processes leave, for they were killed or there is no cache, is compiled by this one. Returns the exit codes
    of the processes that failed.
    """
    pending = deque(sorted(launches, key=_size, reverse=True))  # the longest first, so that none is waited for alone
    failed = _compile_in_processes(pending, min(processes, len(pending)), tick) if jit.writable() else []
    for launch in pending:
        launch.compile()
        tick()
    return failed


def _size(launch: jit.Launch) -> int:
    """Bytes of the kernel's Python code, a rough measure of how long it takes to compile."""
    return len(launch.kernel.py_func.__code__.co_code)


def _compile_in_processes(pending: deque[jit.Launch], count: int, tick: Callable[[], object]) -> list[int]:
    """Take launches from `pending` until it is empty, or no process is left; returns the exit codes of failed ones."""
    started: list[subprocess.Popen] = []
    threads: list[Thread] = []
    try:
        for _ in range(count):
            started.append(_start())
            threads.append(Thread(target=_feed, args=(started[-1], pending, tick), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join()
        for process in started:
            process.communicate()  # closes its stdin
        return [process.returncode for process in started if process.returncode]
    finally:
        for process in started:
            process.kill()
            process.wait()


def _start() -> subprocess.Popen:
    """A process that compiles. In a session of its own, Ctrl-C does not reach it: this process ends it."""
    command, pipe = [sys.executable, "-m", __name__], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1, start_new_session=True)


def _feed(process: Any, pending: deque[jit.Launch], tick: Callable[[], object]) -> None:
    """Give a process one launch after the other; if it ends, the one that it had goes back."""
    while pending:
        try:
            launch = pending.popleft()
        except IndexError:  # another thread took the last
            return
        if not _done_by(process, launch):
            pending.append(launch)
            return
        tick()


def _done_by(process: Any, launch: jit.Launch) -> bool:
    """Whether a process compiled a launch."""
    function = launch.kernel.py_func
    try:
        process.stdin.write(dumps((function.__module__, function.__name__, launch.types)).hex() + "\n")
        return process.stdout.readline() == DONE
    except OSError:  # its pipe is closed
        return False


def _serve(requests: TextIO, answers: TextIO) -> None:
    """Compile what the lines of `requests` name."""
    gc.disable()  # an eighth of the time, in a process that is short
    library_class: Any = JITCodeLibrary
    library_class._finalize_specific = _finalize
    files_class: Any = jit.ChecksummedFiles
    files_class.load = _nothing
    jit.cpu_target.target_context.__class__ = _KernelContext
    for line in requests:
        module, name, types = loads(bytes.fromhex(line))
        kernel = getattr(importlib.import_module(module), name)
        _KernelContext.kernel = module, name
        launch = jit.Launch(kernel, types)
        if not launch.is_cached:  # by another program, since it was found missing
            launch.compile()
        answers.write(DONE)
        answers.flush()


class _KernelContext(CPUContext):
    """Numba's compilation context, which makes machine code of one kernel and not of each function that it calls.

    The kernel's library holds the code of all that it calls, and is all that the cache keeps. Numba makes machine code
    of every function besides, so that Python may call it, which nobody does in this process.
    """

    kernel = ("", "")  # its module and name

    def _is_kernel(self, fndesc) -> bool:
        return (fndesc.modname, fndesc.qualname) == self.kernel

    def get_executable(self, library, fndesc, env):
        if self._is_kernel(fndesc):
            return super().get_executable(library, fndesc, env)
        no_address, documentation = 0, ""
        names = fndesc.lookup_module(), fndesc.qualname
        return _dynfunc.make_function(*names, documentation, no_address, env, (library,))

    def create_cpython_wrapper(self, library, fndesc, *arguments, **options):
        if self._is_kernel(fndesc):
            super().create_cpython_wrapper(library, fndesc, *arguments, **options)

    def create_cfunc_wrapper(self, *arguments):
        """None: no C calls a kernel."""


def _finalize(library: Any) -> None:
    """Without finalize_object(): LLVM makes the machine code of a library when one of its addresses is asked for."""
    library._codegen._scan_and_fix_unresolved_refs(library._final_module)


def _nothing(files: Any, key: Any) -> None:
    """In place of what the cache holds: code that is loaded needs finalize_object(), or Numba writes to address 0."""


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)
