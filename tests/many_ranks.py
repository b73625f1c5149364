"""Starts a program as several ranks by mpiexec, with a time limit."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
needed = pytest.mark.skipif(MPIEXEC is None, reason="needs mpiexec: pip install 'minidiff[mpi]', or on Windows an MPI")


def environment():
    """Of processes that mpiexec starts, as root in a container, too; each has one thread."""
    one_thread = dict.fromkeys(("NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    as_root = dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1")
    return os.environ | one_thread | as_root | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def start(n, *arguments, **options):
    """A Popen of mpiexec with `n` ranks of `python *arguments`."""
    command = [MPIEXEC, "--oversubscribe", "--bind-to", "none", "-n", n, sys.executable, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()} | options
    return subprocess.Popen([str(word) for word in command], **pipes)


def run(n, *arguments, timeout=180, **options):
    """As `start`, until its end: (exit code, stdout, stderr). What takes longer than `timeout` seconds is killed."""
    with start(n, *arguments, **options) as child:
        try:
            out, err = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            child.terminate()
            raise
    return child.returncode, out, err
