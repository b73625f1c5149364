"""Compilation ahead of use, in processes: complete, with the same bits, and harmless whatever happens to them."""

import os
import signal
import subprocess
import sys
import time

import own_process
import pytest

# Kernels whose launches are found by a dry run, compiled in two processes and run. Prints the number of launches, the
# exit codes of failed processes, the ticks, how often this process compiled, and the results.
PROGRAM = """
import hashlib, subprocess, sys
import numpy as np
from minidiff_kernels import ahead
from minidiff_kernels.cpu import elementwise, jit, resample
rng = np.random.default_rng(0)
a, b = (rng.standard_normal((2, 6, 5, 4), dtype=np.float32) for _ in range(2))
work = lambda: (elementwise.silu(a), *resample.concat_backward(resample.concat(a, b), 4), elementwise.sum_to(a, (4,)))
def main():
    with jit.dry_run() as launches:
        work()
    ticks = []
    failed = ahead.compile_ahead(ahead.missing(launches), 2, lambda: ticks.append(1))
    assert not (ahead.missing(launches) and jit.writable())
    results = work()
    compiled = sum(launch.kernel.stats.cache_misses.total() for launch in launches)
    digest = hashlib.sha256(b"".join(a.tobytes() for a in results)).hexdigest()
    print(len(launches), failed, len(ticks), compiled, digest)
"""
IN_THIS_PROCESS = PROGRAM + "ahead.compile_ahead = lambda *_: []\nahead.missing = lambda launches: []\nmain()"
SHORT_LIVED = """
def start():
    code = "import os, signal; input(); os.kill(os.getpid(), signal.SIGKILL)"
    return subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True, bufsize=1)
ahead._start = start
main()
"""
# Prints the ids of its processes, and then compiles until it is interrupted.
INTERRUPTED = """
real = ahead._start
def start():
    process = real()
    print(process.pid, flush=True)
    return process
ahead._start = start
main()
"""


# Compiles what another program has put into the cache in the meantime; prints the exit codes of failed processes.
CACHED_MEANWHILE = """
with jit.dry_run() as launches:
    work()
for launch in launches:
    launch.kernel.compile(launch.types)
assert not ahead.missing(launches)
print(ahead.compile_ahead(launches, 2, lambda: None))
"""


@pytest.fixture(scope="module")
def bits(tmp_path_factory):
    """The results of kernels that compile at their first call."""
    output, _ = own_process.run(IN_THIS_PROCESS, NUMBA_CACHE_DIR=str(tmp_path_factory.mktemp("cache")))
    launches, failed, ticks, compiled, results = output.split()
    assert (launches, failed, ticks, compiled) == ("4", "[]", "0", "4")
    return results


def test_all_is_compiled_ahead_to_the_same_bits(tmp_path, bits):
    for ticks in ("4", "0"):  # the second time all is cached
        output, errors = own_process.run(PROGRAM + "main()", NUMBA_CACHE_DIR=str(tmp_path))
        assert (output.split(), errors) == (["4", "[]", ticks, "0", bits], "")


def test_another_program_that_fills_the_cache_at_the_same_time_does_no_harm(tmp_path):
    output, errors = own_process.run(PROGRAM + CACHED_MEANWHILE, NUMBA_CACHE_DIR=str(tmp_path))
    assert (output.strip(), errors) == ("[]", "")


def test_a_killed_process_is_reported_and_this_one_takes_its_place(tmp_path, bits):
    output, errors = own_process.run(PROGRAM + SHORT_LIVED, NUMBA_CACHE_DIR=str(tmp_path))
    assert (output.split(), errors) == (["4", "[-9,", "-9]", "4", "4", bits], "")


def test_without_a_cache_this_process_compiles(bits):
    output, errors = own_process.run(PROGRAM + "main()", NUMBA_CACHE_DIR="", XDG_CACHE_HOME="/dev/null/x")
    assert output.split() == ["4", "[]", "4", "4", bits]
    assert errors.startswith("minidiff: compiled kernels are not kept, ") and errors.count("\n") == 1


def ended(process, seconds=60):
    """Whether a process ends within that time: it is killed, or notices that nobody reads its answers."""
    for _ in range(10 * seconds):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_ctrl_c_ends_all_processes(tmp_path):
    program = own_process.start(PROGRAM + INTERRUPTED, NUMBA_CACHE_DIR=str(tmp_path))
    assert program.stdout
    processes = [int(program.stdout.readline()) for _ in range(2)]
    program.send_signal(signal.SIGINT)
    output, errors = program.communicate(timeout=60)
    assert output == "" and errors.splitlines()[-1] == "KeyboardInterrupt"
    assert program.returncode == -signal.SIGINT
    for process in processes:
        assert ended(process)


def test_a_process_ends_with_what_it_serves(tmp_path):
    """Without a line to answer, at the end of stdin."""
    command = [sys.executable, "-m", "minidiff_kernels.ahead"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(own_process.SOURCES), "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, input="", capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
