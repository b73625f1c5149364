"""One interface to all kernels: typed methods, each bound by a table to its kernel in one of three packages."""

# a kernel takes the place of each method, whose body is its docstring
# pyright: reportReturnType=false

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from minidiff.errors import MinidiffError

Array = Any  # of the backend: numpy.ndarray or cupy.ndarray

PACKAGES = {"numpy": "reference", "numba": "cpu", "numba-bf16": "cpu", "cupy": "gpu", "cupy-tf32": "gpu"}

FAMILIES = {
    "memory": ("empty", "asarray", "to_numpy", "later"),
    "half": ("widen", "pack"),
    "conv": ("conv2d", "conv2d_backward"),
    "norm": ("group_norm", "group_statistics", "normalise", "group_norm_backward"),
    "attention": ("attention", "attention_backward"),
    "elementwise": (
        "silu", "silu_backward", "gelu", "gelu_backward", "geglu", "geglu_backward",
        "add", "sum_to", "embedding", "embedding_backward",
    ),
    "resample": ("upsample_nearest", "upsample_nearest_backward", "concat", "concat_backward"),
    "optim": ("grad_norm", "adamw"),
    "muon": ("muon",),
}  # fmt: skip

# The families of which a backend has kernels of its own, in files with this ending; it shares the others.
VARIANTS = {"numba-bf16": ("_bf16", ("half", "conv", "attention")), "cupy-tf32": ("_tf32", ("conv",))}


@dataclass(frozen=True, eq=False)
class Backend:
    """Every operation of the engine, computed by one set of kernels.

    The kernel of an operation is an attribute of the instance, where it hides the method: a call of it is a call of the
    kernel. `minidiff_kernels/reference/` documents what each computes, with shapes, in the file of its family.
    Plain array algebra (reshape, mean, indexing) runs on `xp`, the array module: numpy or cupy.
    """

    name: str  # one of PACKAGES
    xp: ModuleType
    kernels: Mapping[str, Callable[..., Any]]  # by operation

    def __post_init__(self) -> None:
        vars(self).update(self.kernels)

    def __repr__(self) -> str:
        return f"<backend {self.name}>"

    def empty(self, shape: tuple[int, ...]) -> Array:
        """An uninitialised float32 array, from the backend's memory pool."""

    def asarray(self, a: Any) -> Array:
        """The values of a host array, or of one of this backend, as an array of this backend."""

    def to_numpy(self, a: Array) -> np.ndarray:
        """The values in host memory."""

    def later(self, a: Array) -> Callable[[], np.ndarray]:
        """A function that returns the values in host memory, and waits for a GPU only then."""

    def widen(self, a: Array) -> Array:
        """float16 -> float32, without a rounding; and what `pack` returns."""

    def pack(self, w: Array) -> Array:
        """Weights (O, ..., C) of a convolution or linear layer as this backend keeps them: w itself, or bfloat16."""

    def conv2d(
        self,
        x: Array,
        w: Array,
        bias: Array | None = None,
        stride: int = 1,
        pad: tuple[int, ...] = (0, 0, 0, 0),
        add: Array | None = None,
    ) -> Array:
        """Convolution of x (N, H, W, C) with w (O, KH, KW, C), plus `add` -> y (N, P, Q, O). w may be float16."""

    def conv2d_backward(
        self, dy: Array, x: Array, w: Array, stride: int = 1, pad: tuple[int, ...] = (0, 0, 0, 0),
        need_dx: bool = True, need_dw: bool = True,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """dx (None unless need_dx), dw and dbias (None unless need_dw; then of x only the shape matters)."""

    def group_norm(
        self, x: Array, weight: Array, bias: Array, groups: int, eps: float, silu: bool = False
    ) -> tuple[Array, Array, Array]:
        """Group normalisation of x (N, ..., C), then SiLU if `silu` -> y, mean, rstd."""

    def group_statistics(self, x: Array, groups: int, eps: float) -> tuple[Array, Array]:
        """mean and rstd (N, groups) of `group_norm` alone."""

    def normalise(self, x: Array, weight: Array, bias: Array, mean: Array, rstd: Array, silu: bool = False) -> Array:
        """y of `group_norm` from its statistics, of some rows of each image, or of all."""

    def group_norm_backward(
        self, dy: Array, x: Array, weight: Array, bias: Array, mean: Array, rstd: Array, silu: bool = False,
        y: Array | None = None, add: Array | None = None,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """dx + add, dweight, dbias; y, which may be dy, becomes the output once more."""

    def attention(self, q: Array, k: Array, v: Array, causal: bool = False) -> tuple[Array, Array]:
        """softmax(q k^T / sqrt(D)) v of each head, q (N, T, heads, D) -> o, and the log-sum-exp of the scores, lse."""

    def attention_backward(
        self, do: Array, q: Array, k: Array, v: Array, o: Array, lse: Array, causal: bool = False
    ) -> tuple[Array, Array, Array]:
        """dq, dk, dv."""

    def silu(self, x: Array) -> Array:
        """x sigmoid(x)."""

    def silu_backward(self, dy: Array, x: Array) -> Array:
        """dx."""

    def gelu(self, x: Array) -> Array:
        """x Phi(x), Phi the cumulative distribution function of N(0, 1)."""

    def gelu_backward(self, dy: Array, x: Array) -> Array:
        """dx."""

    def geglu(self, x: Array) -> Array:
        """h gelu(gate), the halves of x (..., 2 C) -> (..., C)."""

    def geglu_backward(self, dy: Array, x: Array, y: Array | None = None) -> Array:
        """dx; y, which may be dy, becomes the output once more."""

    def add(self, a: Array, b: Array) -> Array:
        """a + b, of the same shape."""

    def sum_to(self, dy: Array, shape: tuple[int, ...]) -> Array:
        """dy summed over the axes along which `shape` was broadcast."""

    def embedding(self, table: Array, index: np.ndarray) -> Array:
        """Rows of table (K, D) -> (N, D)."""

    def embedding_backward(self, dy: Array, index: np.ndarray, rows: int) -> Array:
        """dtable (rows, D)."""

    def upsample_nearest(self, x: Array) -> Array:
        """Each pixel twice in both directions: (N, H, W, C) -> (N, 2 H, 2 W, C)."""

    def upsample_nearest_backward(self, dy: Array) -> Array:
        """dx."""

    def concat(self, a: Array, b: Array) -> Array:
        """The channels of a, then those of b."""

    def concat_backward(self, dy: Array, channels: int) -> tuple[Array, Array]:
        """da, the first so many channels of dy, and db."""

    def grad_norm(self, g: Array) -> Array:
        """The norm of all gradients g (P,), a 0-d array."""

    def adamw(
        self, p: Array, g: Array, m: Array, v: Array, ema: Array | None, norm: Array, clip: float,
        lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int, ema_decay: float,
    ) -> None:  # fmt: skip
        """Clipping, one step of AdamW and of the EMA on flat buffers (P,), in place."""

    def muon(
        self, p: Array, g: Array, m: Array, ema: Array | None, matrices: np.ndarray, norm: Array, clip: float,
        lr: float, momentum: float, weight_decay: float, ema_decay: float,
    ) -> None:  # fmt: skip
        """Clipping, one step of Muon and of the EMA on matrices (M, 3) in flat buffers (P,), in place."""


@cache
def get_backend(name: str) -> Backend:
    """The backend of that name.

    "numpy"      NumPy reference
    "numba"      multi-threaded CPU kernels
    "numba-bf16" the same, but products have factors in bfloat16 (7 bits of mantissa); for sampling
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
    ending, own = VARIANTS.get(name, ("", ())) if package != "reference" else ("", ())
    kernels: dict[str, Callable[..., Any]] = {}
    for family, names in FAMILIES.items():
        module = importlib.import_module(f"minidiff_kernels.{package}.{family}{ending if family in own else ''}")
        kernels |= {op: getattr(module, op) for op in names}
    return Backend(name, xp, kernels)


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
