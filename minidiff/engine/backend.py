"""One interface to all kernels: a table that binds the name of each operation to its implementation."""

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

    `minidiff_kernels/reference/` documents what each computes, with shapes, in the file of its family.
    Plain array algebra (reshape, mean, indexing) runs on `xp`, the array module: numpy or cupy.
    """

    name: str  # one of PACKAGES
    xp: ModuleType

    empty: Callable[..., Any]  # shape -> uninitialised array, from the backend's memory pool
    asarray: Callable[..., Any]  # host array -> this backend's array
    to_numpy: Callable[..., Any]  # this backend's array -> host array
    later: Callable[..., Any]  # this backend's array -> function that returns it as a host array

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
    add: Callable[..., Any]  # a, b of the same shape -> a + b
    sum_to: Callable[..., Any]  # dy, shape -> dy summed to that shape
    embedding: Callable[..., Any]  # table, index -> rows
    embedding_backward: Callable[..., Any]  # dy, index, rows -> dtable
    upsample_nearest: Callable[..., Any]  # x -> y, twice as high and wide
    upsample_nearest_backward: Callable[..., Any]  # dy -> dx
    concat: Callable[..., Any]  # a, b -> concatenated along the channels
    concat_backward: Callable[..., Any]  # dy, number of channels of a -> da, db
    grad_norm: Callable[..., Any]  # g -> 0-d array
    adamw: Callable[..., Any]  # flat buffers, updated in place

    def __repr__(self) -> str:
        return f"<backend {self.name}>"


@cache
def get_backend(name: str) -> Backend:
    """The backend of that name.

    "numpy"      NumPy reference
    "numba"      multi-threaded CPU kernels
    "cupy"       NVIDIA GPU, float32
    "cupy-tf32"  the same, but convolutions run on tensor cores in TF32 (10 bits of mantissa)

    Raises MinidiffError if the name is unknown, or if a GPU backend finds no CuPy or no GPU.
    """
    if name not in PACKAGES:
        raise MinidiffError(f"unknown backend {name!r}: choose one of {', '.join(PACKAGES)}")
    package = PACKAGES[name]
    if package == "cpu" and not importlib.import_module("minidiff_kernels.cpu.jit").ENABLED:
        package = "reference"  # NUMBA_DISABLE_JIT is set; `minidiff info` reports it
    xp = _cupy(name) if package == "gpu" else importlib.import_module("numpy")
    ops = {}
    for family, names in FAMILIES.items():
        file = "conv_tf32" if (name, family) == ("cupy-tf32", "conv") else family
        module = importlib.import_module(f"minidiff_kernels.{package}.{file}")
        ops |= {op: getattr(module, op) for op in names}
    return Backend(name, xp, **ops)


def _cupy(name: str) -> ModuleType:
    """Import CuPy. Raises MinidiffError if it is not installed or finds no GPU."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError:
        remedy = "pip install 'minidiff[gpu]', or choose --backend numba"
        raise MinidiffError(f"backend {name} needs CuPy, which is not installed: {remedy}") from None
    try:
        cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy's own error types, which cannot be named without importing it
        raise MinidiffError(f"backend {name} finds no GPU ({error}): choose --backend numba") from None
    return cupy
