"""One interface to the kernels: a short table that binds the name of each operation to what computes it."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from minidiff.errors import MinidiffError

PACKAGES = {"numpy": "reference", "numba": "cpu", "cupy": "gpu", "cupy-tf32": "gpu"}

FAMILIES = {
    "memory": ("empty", "asarray", "to_numpy", "later"),
    "conv": ("conv2d", "conv2d_backward"),
    "norm": ("group_norm", "group_norm_backward"),
    "attention": ("attention", "attention_backward"),
    "elementwise": (
        "silu",
        "silu_backward",
        "gelu",
        "gelu_backward",
        "geglu",
        "geglu_backward",
        "add",
        "sum_to",
        "embedding",
        "embedding_backward",
    ),
    "resample": ("upsample_nearest", "upsample_nearest_backward", "concat", "concat_backward"),
    "optim": ("grad_norm", "adamw"),
}


@dataclass(frozen=True, eq=False)
class Backend:
    """Every operation of the engine, bound to one set of kernels.

    What each computes, and the shapes, stand in `minidiff_kernels/reference/`, in the file of its family.
    Whatever is plain algebra (reshape, mean, indexing) runs on `xp`, the array module itself.
    """

    name: str  # one of PACKAGES
    xp: ModuleType

    empty: Callable[..., Any]  # shape -> array with arbitrary contents, out of the backend's memory
    asarray: Callable[..., Any]  # host array -> this backend's array
    to_numpy: Callable[..., Any]  # this backend's array -> host array
    later: Callable[..., Any]  # this backend's array -> function that gives it as a host array

    conv2d: Callable[..., Any]  # x, w, bias, stride, pad, add -> y
    conv2d_backward: Callable[..., Any]  # dy, x, w, stride, pad, need_dx -> dx, dw, dbias
    group_norm: Callable[..., Any]  # x, weight, bias, groups, eps, silu -> y, mean, rstd
    group_norm_backward: Callable[..., Any]  # dy, x, weight, bias, mean, rstd, silu -> dx, dweight, dbias
    attention: Callable[..., Any]  # q, k, v, causal -> o, lse
    attention_backward: Callable[..., Any]  # do, q, k, v, o, lse, causal -> dq, dk, dv
    silu: Callable[..., Any]  # x -> y
    silu_backward: Callable[..., Any]  # dy, x -> dx
    gelu: Callable[..., Any]  # x -> y
    gelu_backward: Callable[..., Any]  # dy, x -> dx
    geglu: Callable[..., Any]  # x -> y
    geglu_backward: Callable[..., Any]  # dy, x -> dx
    add: Callable[..., Any]  # a, b -> a + b, of one shape
    sum_to: Callable[..., Any]  # dy, shape -> dy summed to that shape
    embedding: Callable[..., Any]  # table, index -> rows
    embedding_backward: Callable[..., Any]  # dy, index, rows -> dtable
    upsample_nearest: Callable[..., Any]  # x -> y, twice as high and wide
    upsample_nearest_backward: Callable[..., Any]  # dy -> dx
    concat: Callable[..., Any]  # a, b -> joined along the channels
    concat_backward: Callable[..., Any]  # dy, channels of a -> da, db
    grad_norm: Callable[..., Any]  # g -> 0-d array
    adamw: Callable[..., Any]  # flat buffers, in place

    def __repr__(self) -> str:
        return f"<backend {self.name}>"


@cache
def get_backend(name: str) -> Backend:
    """The backend of that name.

    "numpy"      the reference
    "numba"      multi-threaded on the CPU
    "cupy"       on a GPU of NVIDIA's, in float32
    "cupy-tf32"  the same with convolutions on its tensor cores, which look at ten bits of mantissa

    Raises MinidiffError for any other name, and for a GPU's where there is no CuPy or no GPU.
    """
    if name not in PACKAGES:
        raise MinidiffError(f"unknown backend {name!r}: choose one of {', '.join(PACKAGES)}")
    package = PACKAGES[name]
    if package == "cpu" and not importlib.import_module("minidiff_kernels.cpu.jit").ENABLED:
        package = "reference"  # without the compiler there is no fast twin; `minidiff info` says so
    xp = _cupy(name) if package == "gpu" else importlib.import_module("numpy")
    ops = {}
    for family, names in FAMILIES.items():
        file = "conv_tf32" if (name, family) == ("cupy-tf32", "conv") else family
        module = importlib.import_module(f"minidiff_kernels.{package}.{file}")
        ops |= {op: getattr(module, op) for op in names}
    return Backend(name, xp, **ops)


def _cupy(name: str) -> ModuleType:
    """CuPy, if it is installed and finds a GPU."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError:
        remedy = "pip install 'minidiff[gpu]', or choose --backend numba"
        raise MinidiffError(f"backend {name} needs CuPy, which is not installed: {remedy}") from None
    try:
        cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy's own kinds, which cannot be named where there is none
        raise MinidiffError(f"backend {name} finds no GPU ({error}): choose --backend numba") from None
    return cupy
