"""Launching GPU kernels: arguments are checked, and a missing CuPy or GPU gives a one-line error."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from minidiff_kernels.gpu import launch

from minidiff.engine import backend
from minidiff.errors import MinidiffError

GPU = backend.get_backend("cupy")


def add(a, b, y, size=12):
    launch.launch("elementwise", "add", 1, 256, a, b, y, size)


def test_arrays_must_be_contiguous():
    a = GPU.asarray(np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"add: an array of shape \(4, 3\) is not contiguous"):
        add(a, a.T, a)


@pytest.mark.parametrize("size", [2**31, -(2**31) - 1])
def test_integers_must_fit_32_bits(size):
    a = GPU.asarray(np.ones(12))
    with pytest.raises(ValueError, match="does not fit 32 bits"):
        add(a, a, a, size)


@pytest.mark.parametrize("argument", [np.ones(12, np.float32), "12", np.int64(12)])
def test_other_types_are_refused(argument):
    a = GPU.asarray(np.ones(12))
    with pytest.raises(TypeError, match="cannot pass"):
        add(a, argument, a)


def test_empty_arrays_launch_nothing():
    assert GPU.add(GPU.empty((0, 4)), GPU.empty((0, 4))).shape == (0, 4)


def test_large_kernels_are_refused():
    x, largest, w = GPU.asarray(np.ones((1, 1, 16, 1))), GPU.asarray(np.ones((1, 1, 15, 1))), GPU.empty((1, 1, 16, 1))
    assert GPU.to_numpy(GPU.conv2d(x, largest)).ravel().tolist() == [15, 15]
    with pytest.raises(ValueError, match="a kernel of 1x16 is too large"):
        GPU.conv2d(x, w)


def test_the_error_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    with pytest.raises(MinidiffError, match=r"needs CuPy, which is not installed: pip install 'minidiff\[gpu\]'"):
        backend.get_backend.__wrapped__("cupy")


def test_the_error_without_a_gpu(monkeypatch):
    def none():
        raise RuntimeError("cudaErrorNoDevice")

    monkeypatch.setitem(
        sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=none)))
    )
    with pytest.raises(MinidiffError, match="finds no GPU .cudaErrorNoDevice.: choose --backend numba"):
        backend.get_backend.__wrapped__("cupy-tf32")
