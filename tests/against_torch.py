"""How minidiff is held to torch: float64 is the truth, and torch's own float32 error the yardstick.

A `Case` states one computation twice, for a backend and for torch, on the same float32 inputs. Both sides give
a dictionary of results: the output "y", the gradients "dx", "dw", ... `check` compares all that our side gives.
torch sees the same memory as we do: NHWC arrays viewed as NCHW, which is what it calls channels_last.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from minidiff.engine.backend import Backend
from minidiff.engine.tensor import Tensor

torch.set_num_threads(1)  # two thread pools on the same cores only wait for one another

# A float32 operation is off by up to 2^-24 = 6e-8 of its result. Rivals' kernels do a few of them in a row for
# every number (3e-7), or add hundreds of products, whose errors grow with the square root of their count (1.2e-6).
FLOOR, CONV_FLOOR = 3e-7, 1.2e-6


@dataclass(frozen=True, eq=False)
class Case:
    """One line of a table: what it is called, its inputs, and the two sides.

    ours(backend, **inputs) works on the backend's arrays, theirs(**inputs) on tensors of either precision.
    """

    label: str
    inputs: Mapping[str, np.ndarray]
    ours: Callable[..., dict[str, Any]]
    theirs: Callable[..., dict[str, torch.Tensor]]
    floor: float = FLOOR

    def __str__(self) -> str:
        return self.label


def rms(a: np.ndarray) -> float:
    """Root of the mean square, computed in float64."""
    return float(np.sqrt(np.square(a, dtype=np.float64).mean()))


def rms_error(got: np.ndarray, want: np.ndarray) -> float:
    """The rms of got - want relative to the rms of want; absolute where want is zero but for float64 rounding."""
    scale = rms(want)
    return rms(got.astype(np.float64) - want) / (scale if scale > 1e-12 else 1)


def nchw(a: torch.Tensor) -> torch.Tensor:
    """The same memory with channels second: NHWC seen as NCHW, OHWI as OIHW."""
    return a.movedim(-1, 1)


def nhwc(a: torch.Tensor) -> torch.Tensor:
    """The way back."""
    return a.movedim(1, -1)


def torch_layout(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of ours as torch wants it: of every 4-d array, the last axis goes second."""
    return {name: nchw(a) if a.ndim == 4 else a for name, a in state.items()}


def draw(*shape: int, scale: float = 1, offset: float = 0, seed: int = 0) -> np.ndarray:
    """Normal float32 numbers; the same ones for the same shape and seed."""
    rng = np.random.default_rng([seed, *shape])
    return (offset + scale * rng.standard_normal(shape)).astype(np.float32)


def autograd(f: Callable[..., torch.Tensor]) -> Callable[..., dict[str, torch.Tensor]]:
    """Their side from a differentiable function: its output, and every gradient of sum(y dy)."""

    def theirs(dy: torch.Tensor, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        leaves = {k: a.requires_grad_() for k, a in inputs.items() if a.is_floating_point()}
        y = f(**inputs)
        return {"y": y} | {f"d{k}": g for k, g in zip(leaves, torch.autograd.grad(y, leaves.values(), dy), strict=True)}

    return theirs


def taped(f: Callable[..., Tensor]) -> Callable[..., dict[str, Any]]:
    """Our side from a function of Tensors: its output, and every gradient through the tape."""

    def ours(backend: Backend, dy: Any, **inputs: Any) -> dict[str, Any]:
        leaves = {k: Tensor(a, backend, requires_grad=True) for k, a in inputs.items()}
        y = f(**leaves)
        y.backward(dy)
        return {"y": y.data} | {f"d{k}": leaf.grad for k, leaf in leaves.items()}

    return ours


def differentiable(label: str, ours: Callable, theirs: Callable, floor: float = FLOOR, **inputs: np.ndarray) -> Case:
    """The case of a function of Tensors and the same function of torch: output and all gradients."""
    y = theirs(**{k: torch.tensor(a) for k, a in inputs.items()})
    return Case(label, {"dy": draw(*y.shape, seed=9), **inputs}, taped(ours), autograd(theirs), floor)


def run_ours(backend: Backend, case: Case, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our results on the host. Holds them to be float32, contiguous and fresh, and the inputs to be as before."""
    given = {k: backend.asarray(a) if a.dtype.kind == "f" else a for k, a in inputs.items()}
    before = {k: backend.to_numpy(a).copy() for k, a in given.items()}
    got = {k: np.asarray(backend.to_numpy(a)) for k, a in case.ours(backend, **given).items()}
    for k, a in given.items():
        np.testing.assert_array_equal(backend.to_numpy(a), before[k], f"{case}: input {k} was changed")
    for k, a in got.items():
        assert a.dtype == np.float32 or a.ndim == 0, f"{case}: {k} is {a.dtype}"
        assert a.flags.c_contiguous, f"{case}: {k} is not contiguous"
        shared = [i for i, b in given.items() if np.shares_memory(a, backend.to_numpy(b))]
        assert not shared, f"{case}: {k} lies in the memory of {shared}"
    return got


def run_theirs(case: Case, inputs: Mapping[str, np.ndarray], dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Their results on the host, computed in the precision given."""
    tensors = {k: torch.tensor(a, dtype=dtype if a.dtype.kind == "f" else torch.int64) for k, a in inputs.items()}
    return {k: a.detach().numpy() for k, a in case.theirs(**tensors).items()}


def check(backend: Backend, case: Case) -> None:
    """Every result of ours is at most twice as far from the truth as torch's in float32, or the floor."""
    got = run_ours(backend, case, case.inputs)
    want, rival = (run_theirs(case, case.inputs, dtype) for dtype in (torch.float64, torch.float32))
    for k, a in got.items():
        assert a.shape == want[k].shape, f"{case}: {k} has shape {a.shape}, not {want[k].shape}"
        error, bound = rms_error(a, want[k]), max(2 * rms_error(rival[k], want[k]), case.floor)
        assert error <= bound, f"{case}: {k} is off by {error:.2e}, allowed are {bound:.2e}"


def check_nan(backend: Backend, case: Case) -> None:
    """A NaN in the middle of any input reaches all numbers that it reaches in torch, and stays in their rows.

    A row: all that shares the first index, such as a picture. Within it a NaN may go further than in torch, where a
    kernel multiplies a NaN weight with the zeros of the border, or transforms neighbouring pixels together.
    """
    for name, a in case.inputs.items():
        if a.dtype.kind != "f":
            continue
        spoilt = a.copy()
        spoilt[tuple(n // 2 for n in a.shape)] = np.nan
        inputs = {**case.inputs, name: spoilt}
        got, want = run_ours(backend, case, inputs), run_theirs(case, inputs, torch.float64)
        assert any(np.isnan(want[k]).any() for k in got), f"{case}: a NaN in {name} reaches nothing: a blind test"
        for k in got:
            ours, theirs = np.isnan(got[k]), np.isnan(want[k])
            assert (ours >= theirs).all(), f"{case}: a NaN in {name} is lost on the way to {k}"
            rows = (a.reshape(len(a), -1).any(1) if a.ndim else a for a in (ours, theirs))
            np.testing.assert_array_equal(*rows, f"{case}: a NaN in {name} spreads to other rows of {k}")
