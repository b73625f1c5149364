"""Nothing is left out: every operation has its own kernel, and every kernel is held to torch."""

import ast
import importlib.util
import inspect
import os
import sys
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import minidiff_kernels
import pytest
from against_torch import Case, check

from minidiff.engine.backend import FAMILIES, PACKAGES, get_backend

OPS = [op for names in FAMILIES.values() for op in names]
REFERENCE = get_backend("numpy")


@cache
def table(path: Path) -> list[Case]:
    """The cases that a test file of this folder runs through `check`."""
    spec = importlib.util.spec_from_file_location(f"table_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CASES


def test_families_list_every_operation_of_the_backend():
    assert set(OPS) == {field.name for field in fields(REFERENCE)} - {"name", "xp"}


def test_every_operation_is_held_to_torch():
    """One case of each kind is run on a backend that notes what is called."""
    called = set()

    def noting(op):
        def wrapped(*args, **kwargs):
            called.add(op)
            return getattr(REFERENCE, op)(*args, **kwargs)

        return wrapped

    noted = replace(REFERENCE, **{op: noting(op) for op in OPS})
    paths = [path for path in Path(__file__).parent.glob("test_*.py") if "\nCASES = [" in path.read_text()]
    for path in paths:
        kinds = {case.ours.__qualname__: case for case in table(path)}
        for case in kinds.values():
            check(noted, case)
    assert set(OPS) - called == set()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", [name for name in PACKAGES if name != "numpy"])
def test_an_operation_is_the_backend_s_own_and_takes_the_same_arguments(name, op):
    kernel, reference = getattr(get_backend(name), op), getattr(REFERENCE, op)
    assert inspect.signature(kernel) == inspect.signature(reference)
    if os.environ.get("NUMBA_DISABLE_JIT", "0") == "0":  # without compiler the reference stands in
        assert kernel is not reference
        assert kernel.__module__.startswith(f"minidiff_kernels.{PACKAGES[name]}.")


def test_kernels_import_arrays_and_compilers_only():
    allowed = {"numpy", "numba", "llvmlite", "cupy", "minidiff_kernels"} | sys.stdlib_module_names
    for path in Path(minidiff_kernels.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            assert {name.partition(".")[0] for name in names} <= allowed, f"{path} imports {names}"
