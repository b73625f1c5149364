"""The cases of tests/kernels/ by family, to be run again with another order of threads, or on mutated kernels."""

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
from against_torch import Case, run_ours
from minidiff_kernels.gpu import launch

from minidiff.engine.backend import get_backend

KERNELS = Path(__file__).parents[1] / "kernels"
FILES = {
    "conv": ("test_conv.py", "test_tf32.py"), "winograd": ("test_winograd.py",), "norm": ("test_norm.py",),
    "attention": ("test_attention.py",), "elementwise": ("test_elementwise.py",), "resample": ("test_resample.py",),
    "optim": ("test_optim_kernels.py",),
}  # fmt: skip


@cache
def cases(family: str) -> list[tuple[str, Case]]:
    """(backend, case) for all cases of a family, the small ones first."""
    found = []
    for name in FILES[family]:
        spec = importlib.util.spec_from_file_location(f"cases_of_{name}", KERNELS / name)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += [("cupy-tf32" if name == "test_tf32.py" else "cupy", case) for case in module.CASES]
    return sorted(found, key=lambda pair: sum(a.size for a in pair[1].inputs.values()))


@cache
def expected(case: Case) -> dict[str, np.ndarray]:
    """The reference's results in float64."""
    inputs = {name: a.astype(np.float64) if a.dtype.kind == "f" else a for name, a in case.inputs.items()}
    return {name: np.asarray(a) for name, a in case.ours(get_backend("numpy"), **inputs).items()}


def mismatch(name: str, case: Case) -> str | None:
    """A description of the first mismatch of a case on that backend, or None."""
    try:
        got = run_ours(get_backend(name), case, case.inputs)
    except RuntimeError as error:  # from the simulator
        return str(error)
    for key, want in expected(case).items():
        error = np.abs(got[key] - want).max() / max(np.abs(want).max(), 1e-2)  # absolute where the result is near zero
        if not error < (1e-3 if name == "cupy" else 1e-2):  # false for NaN too
            return f"{case}: {key} is off by {error}"
    return None


def clear_compiled() -> None:
    """Drop the compiled kernels, so that the next launch compiles them."""
    launch.kernel.cache_clear()
    launch.module.cache_clear()
