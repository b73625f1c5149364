"""Threads, and what a report should say of the machine."""

import os
import subprocess
import sys

import numba
import pytest
import threadpoolctl
from minidiff_kernels.cpu import jit, simd

from minidiff import machine
from minidiff.errors import MinidiffError

MOST = min(machine.cores(), numba.config.NUMBA_NUM_THREADS)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture(autouse=True)
def threads_as_before():
    before = numba.get_num_threads()
    with threadpoolctl.threadpool_limits():
        yield
    numba.set_num_threads(before)


def blas_threads():
    return {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}


def test_cores():
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("threads", [1, MOST, None])
def test_use_threads(threads, backend):
    used = machine.use_threads(threads, backend)
    assert used == (threads or MOST) == numba.get_num_threads()
    assert blas_threads() == {used if backend == "numpy" else 1}


@pytest.mark.parametrize("threads", [0, -1, MOST + 1, 10**9])
def test_no_other_number_of_threads(threads):
    before = numba.get_num_threads(), blas_threads()
    with pytest.raises(MinidiffError, match=f"{threads} threads: this machine has 1 to {MOST}"):
        machine.use_threads(threads, "numba")
    assert (numba.get_num_threads(), blas_threads()) == before


def test_an_unknown_backend():
    with pytest.raises(MinidiffError, match="unknown backend 'tpu'"):
        machine.use_threads(1, "tpu")


def test_a_threading_layer_that_cannot_be_loaded(monkeypatch):
    def unknown(threads):
        raise ValueError("The threading layer requested 'foo' is unknown to Numba.")

    monkeypatch.setattr(numba, "set_num_threads", unknown)
    with pytest.raises(MinidiffError, match="'foo' is unknown to Numba. Or unset NUMBA_THREADING_LAYER"):
        machine.use_threads(1, "numba")


def test_describe():
    facts = machine.describe()
    assert facts["NumPy"] == __import__("numpy").__version__ and facts["Numba"] == numba.__version__
    assert facts["threads"] == numba.get_num_threads()
    assert facts["threading layer"] in ("omp", "tbb", "workqueue")
    assert facts["vector width"] == f"{simd.LANES} float32 ({32 * simd.LANES} bits)"
    assert facts["kernel cache"] == str(jit.cache_dir())
    assert all("\n" not in str(value) for value in facts.values())


def test_describe_without_the_compiler():
    code = "from minidiff import machine; print(machine.describe()['threading layer'], machine.compiled())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "NUMBA_DISABLE_JIT" in done.stdout and done.stdout.endswith("True\n")


def test_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.jit, "cache_dir", lambda: tmp_path)
    assert not machine.compiled()
    (tmp_path / "conv").mkdir()
    (tmp_path / "conv" / "conv._pack-50.py311.1.nbc").write_bytes(b"")
    assert machine.compiled()
