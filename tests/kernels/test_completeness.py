"""Every operation has its own kernel on every backend, and every kernel is compared with torch."""

import ast
import importlib.util
import inspect
import os
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import minidiff_kernels
import pytest
from against_torch import Case, check

from minidiff.engine.backend import FAMILIES, PACKAGES, Backend, get_backend

OPS = [op for names in FAMILIES.values() for op in names]
REFERENCE = get_backend("numpy")


@cache
def table(path: Path) -> list[Case]:
    """CASES of a test file of this folder."""
    spec = importlib.util.spec_from_file_location(f"table_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CASES


def test_families_list_every_operation_of_the_backend():
    assert OPS == [name for name, f in vars(Backend).items() if inspect.isfunction(f) and not name.startswith("_")]


def test_every_operation_is_compared_with_torch():
    """Runs one case of each helper in kernel_cases on a backend that records the operations called."""
    called = set()

    def recording_op(op):
        def wrapped(*args, **kwargs):
            called.add(op)
            return getattr(REFERENCE, op)(*args, **kwargs)

        return wrapped

    recording = replace(REFERENCE, kernels={op: recording_op(op) for op in OPS})
    paths = [path for path in Path(__file__).parent.glob("test_*.py") if "\nCASES = [" in path.read_text()]
    for path in paths:
        by_helper = {case.ours.__qualname__: case for case in table(path)}
        for case in by_helper.values():
            check(recording, case)
    assert set(OPS) - called == set()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", PACKAGES)
def test_an_operation_has_its_own_kernel_with_the_arguments_of_the_method(name, op):
    kernel, method = getattr(get_backend(name), op), getattr(Backend, op)
    _, *arguments = inspect.signature(method).parameters.values()  # the first is self
    assert all(a.annotation is not a.empty for a in arguments) and method.__doc__
    assert [a.replace(annotation=a.empty) for a in arguments] == [*inspect.signature(kernel).parameters.values()]
    if os.environ.get("NUMBA_DISABLE_JIT", "0") == "0":  # without the compiler, numba uses the reference
        assert kernel.__module__.startswith(f"minidiff_kernels.{PACKAGES[name]}.")


def test_kernels_import_arrays_and_compilers_only():
    allowed = {"numpy", "numba", "llvmlite", "cupy", "minidiff_kernels"} | sys.stdlib_module_names
    for path in Path(minidiff_kernels.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            assert {name.partition(".")[0] for name in names} <= allowed, f"{path} imports {names}"
