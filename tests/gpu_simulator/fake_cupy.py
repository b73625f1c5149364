"""The part of CuPy that minidiff uses, on NumPy's memory; kernels run in the simulator.

Its arrays have their own type, so that mixing them with NumPy's fails as on a GPU. `empty` is filled with NaN, so that
elements that a kernel does not write are noticed.
"""

import types

import numpy as np
import simulator

__version__ = "simulated"
float32, float64, int32 = np.float32, np.float64, np.int32


class ndarray(np.ndarray):
    """A device array."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        outputs = {"out": tuple(map(_to_host, out))} if out else {}
        result = getattr(ufunc, method)(*map(_to_host, inputs), **outputs, **kwargs)
        return out[0] if out else _to_device(result)

    def __array_function__(self, function, types, args, kwargs):
        return _to_device(function(*map(_to_host, args), **{k: _to_host(a) for k, a in kwargs.items()}))

    def __float__(self):
        return float(self.view(np.ndarray))

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.ctypes.data)

    def get(self, out, blocking):
        out[...] = self.view(np.ndarray)

    def __setitem__(self, key, value):
        self.view(np.ndarray)[key] = _to_host(value)


def _to_host(a):
    """A device array as NumPy's. Raises TypeError for a host array."""
    if isinstance(a, ndarray):
        return a.view(np.ndarray)
    if isinstance(a, np.ndarray) and a.ndim:
        raise TypeError("a host array is mixed with device arrays")
    return a


def _to_device(a):
    """A NumPy result as a device array; CuPy has no scalars."""
    return np.asarray(a).view(ndarray) if isinstance(a, np.ndarray | np.generic) else a


def empty(shape, dtype=float32):
    a = np.empty(shape, dtype)
    a.reshape(-1).view(np.uint8)[...] = 0xFF
    return a.view(ndarray)


def array(a, dtype=None, order="C"):
    return np.array(a.view(np.ndarray) if isinstance(a, ndarray) else a, dtype, order=order).view(ndarray)


def asarray(a, dtype=None):
    return a if isinstance(a, ndarray) and dtype in (None, a.dtype) else array(a, dtype)


def asnumpy(a):
    return np.array(a.view(np.ndarray))


def __getattr__(name):
    """Any other function is NumPy's, with results as device arrays."""
    function = getattr(np, name)
    return lambda *args, **kwargs: _to_device(
        function(*map(_to_host, args), **{k: _to_host(a) for k, a in kwargs.items()})
    )


class RawModule:
    """CuPy's class of a compiled source; here g++ compiles it."""

    flags: tuple[str, ...] = ()

    def __init__(self, code, options=()):
        self.module = simulator.Module(code, self.flags)

    def get_function(self, name):
        kernel = self.module.get_function(name)
        return _Checked(kernel)


class _Checked:
    """A kernel that raises TypeError for host arrays."""

    def __init__(self, kernel):
        object.__setattr__(self, "kernel", kernel)

    def __setattr__(self, name, value):
        setattr(self.kernel, name, value)

    def __call__(self, grid, block, arguments, *, shared_mem=0):
        for a in arguments:
            if isinstance(a, np.ndarray) and not isinstance(a, ndarray):
                raise TypeError("a kernel was given a host array")
        self.kernel(grid, block, arguments, shared_mem=shared_mem)


cuda = types.SimpleNamespace(
    runtime=types.SimpleNamespace(getDeviceCount=lambda: 1, deviceSynchronize=lambda: None),
    alloc_pinned_memory=bytearray,
    Event=lambda disable_timing: types.SimpleNamespace(done=True, record=lambda: None, synchronize=lambda: None),
)
