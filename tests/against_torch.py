"""Comparison with torch: the error to torch in float64 is bounded by torch's own error in float32.

A `Case` is one computation, for a backend and for torch, on the same float32 inputs. Both return a dictionary of
results: the output "y", the gradients "dx", "dw", ... `check` compares all results of the backend. torch gets the same
memory: NHWC arrays viewed as NCHW, its channels_last format.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from minidiff.engine.backend import Backend
from minidiff.engine.tensor import Tensor

torch.set_num_threads(1)  # two thread pools on the same cores slow each other down

# Least bounds of a relative rms error. A float32 operation has a relative error of up to 2^-24 = 6e-8. A kernel does a
# few of them per element (3e-7), or sums hundreds of products, whose error grows with the root of their count (1.2e-6).
FLOOR, CONV_FLOOR = 3e-7, 1.2e-6


@dataclass(frozen=True, eq=False)
class Case:
    """A label, the inputs, and the computation for minidiff and for torch.

    ours(backend, **inputs) takes the backend's arrays, theirs(**inputs) tensors in float32 or float64.
    """

    label: str
    inputs: Mapping[str, np.ndarray]
    ours: Callable[..., dict[str, Any]]
    theirs: Callable[..., dict[str, torch.Tensor]]
    floor: float = FLOOR

    def __str__(self) -> str:
        return self.label


def rms(a: np.ndarray) -> float:
    """Root mean square, computed in float64."""
    return float(np.sqrt(np.square(a, dtype=np.float64).mean()))


def rms_error(got: np.ndarray, want: np.ndarray) -> float:
    """The rms of got - want relative to the rms of want; absolute if the rms of want is below 1e-12."""
    scale = rms(want)
    return rms(got.astype(np.float64) - want) / (scale if scale > 1e-12 else 1)


def nchw(a: torch.Tensor) -> torch.Tensor:
    """A view with the last axis second: NHWC as NCHW, OHWI as OIHW."""
    return a.movedim(-1, 1)


def nhwc(a: torch.Tensor) -> torch.Tensor:
    """The inverse of nchw."""
    return a.movedim(1, -1)


def torch_layout(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A minidiff state dict in torch's layout: the last axis of each 4-d array is second."""
    return {name: nchw(a) if a.ndim == 4 else a for name, a in state.items()}


def draw(*shape: int, scale: float = 1, offset: float = 0, seed: int = 0) -> np.ndarray:
    """Normal float32, with mean `offset` and standard deviation `scale`; the shape and seed determine the values."""
    rng = np.random.default_rng([seed, *shape])
    return (offset + scale * rng.standard_normal(shape)).astype(np.float32)


def autograd(f: Callable[..., torch.Tensor]) -> Callable[..., dict[str, torch.Tensor]]:
    """torch's side of a Case, from a differentiable function: its output, and the gradients of sum(y dy)."""

    def theirs(dy: torch.Tensor, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        leaves = {k: a.requires_grad_() for k, a in inputs.items() if a.is_floating_point()}
        y = f(**inputs)
        return {"y": y} | {f"d{k}": g for k, g in zip(leaves, torch.autograd.grad(y, leaves.values(), dy), strict=True)}

    return theirs


def taped(f: Callable[..., Tensor]) -> Callable[..., dict[str, Any]]:
    """minidiff's side of a Case, from a function of Tensors: its output, and the gradients by the tape."""

    def ours(backend: Backend, dy: Any, **inputs: Any) -> dict[str, Any]:
        leaves = {k: Tensor(a, backend, requires_grad=True) for k, a in inputs.items()}
        y = f(**leaves)
        y.backward(dy)
        return {"y": y.data} | {f"d{k}": leaf.grad for k, leaf in leaves.items()}

    return ours


def differentiable(label: str, ours: Callable, theirs: Callable, floor: float = FLOOR, **inputs: np.ndarray) -> Case:
    """A Case from a function of Tensors and the same function of torch: output and all gradients."""
    y = theirs(**{k: torch.tensor(a) for k, a in inputs.items()})
    return Case(label, {"dy": draw(*y.shape, seed=9), **inputs}, taped(ours), autograd(theirs), floor)


def run_ours(backend: Backend, case: Case, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """minidiff's results on the host. Asserts that they are float32, contiguous and new, and the inputs unchanged."""
    given = {k: backend.asarray(a) if a.dtype.kind == "f" else a for k, a in inputs.items()}
    before = {k: backend.to_numpy(a).copy() for k, a in given.items()}
    got = {k: np.asarray(backend.to_numpy(a)) for k, a in case.ours(backend, **given).items()}
    for k, a in given.items():
        np.testing.assert_array_equal(backend.to_numpy(a), before[k], f"{case}: input {k} was changed")
    for k, a in got.items():
        assert a.dtype == np.float32 or a.ndim == 0, f"{case}: {k} is {a.dtype}"
        assert a.flags.c_contiguous, f"{case}: {k} is not contiguous"
        aliased = [i for i, b in given.items() if np.shares_memory(a, backend.to_numpy(b))]
        assert not aliased, f"{case}: {k} shares memory with {aliased}"
    return got


def run_theirs(case: Case, inputs: Mapping[str, np.ndarray], dtype: torch.dtype) -> dict[str, np.ndarray]:
    """torch's results on the host, computed in that precision."""
    tensors = {k: torch.tensor(a, dtype=dtype if a.dtype.kind == "f" else torch.int64) for k, a in inputs.items()}
    return {k: a.detach().numpy() for k, a in case.theirs(**tensors).items()}


def check(backend: Backend, case: Case) -> None:
    """Asserts rms_error <= max(2 x torch's float32 error, floor) for each result, relative to torch in float64."""
    got = run_ours(backend, case, case.inputs)
    want, rival = (run_theirs(case, case.inputs, dtype) for dtype in (torch.float64, torch.float32))
    for k, a in got.items():
        assert a.shape == want[k].shape, f"{case}: {k} has shape {a.shape}, not {want[k].shape}"
        error, bound = rms_error(a, want[k]), max(2 * rms_error(rival[k], want[k]), case.floor)
        assert error <= bound, f"{case}: {k} is off by {error:.2e}, the bound is {bound:.2e}"


def check_nan(backend: Backend, case: Case) -> None:
    """Asserts that a NaN in the middle of each input reaches all elements that it reaches in torch, and no other row.

    A row is all elements with the same first index, for example an image. Within it a NaN may reach more elements than
    in torch, where a kernel multiplies a NaN weight by zero padding, or transforms neighbouring pixels together.
    """
    for name, a in case.inputs.items():
        if a.dtype.kind != "f":
            continue
        with_nan = a.copy()
        with_nan[tuple(n // 2 for n in a.shape)] = np.nan
        inputs = {**case.inputs, name: with_nan}
        got, want = run_ours(backend, case, inputs), run_theirs(case, inputs, torch.float64)
        assert any(np.isnan(want[k]).any() for k in got), (
            f"{case}: a NaN in {name} reaches no result, so nothing is tested"
        )
        for k in got:
            ours, theirs = np.isnan(got[k]), np.isnan(want[k])
            assert (ours >= theirs).all(), f"{case}: a NaN in {name} does not reach all of {k}"
            rows = (a.reshape(len(a), -1).any(1) if a.ndim else a for a in (ours, theirs))
            np.testing.assert_array_equal(*rows, f"{case}: a NaN in {name} reaches other rows of {k}")
