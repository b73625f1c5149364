"""The rivals by name. torch runs in this process, TensorFlow and OpenVINO in processes of their own (worker.py)."""

import os
from collections.abc import Iterable
from contextlib import ExitStack
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from minidiff_kernels.cpu import jit

from minidiff import machine
from minidiff.bench import worker
from minidiff.bench.cases import Case
from minidiff.bench.measure import FLOAT64, Rival, Side, our_side
from minidiff.engine.backend import get_backend
from minidiff.errors import MinidiffError


class Library(NamedTuple):
    """A rival that runs in a process of its own: its module, its modes, and the operations it has."""

    module: str
    modes: tuple[str, ...]
    operations: tuple[str, ...]


LIBRARIES = {
    "tensorflow": Library(
        "minidiff.bench.rival_tensorflow",
        ("TensorFlow", "TensorFlow XLA"),
        ("network", "training_step", "network_and_gradient"),
    ),
    "openvino": Library(
        "minidiff.bench.rival_openvino", ("OpenVINO", "OpenVINO bfloat16"), ("network", "large_network")
    ),
}
NAMES = ("torch", "numpy", *LIBRARIES)


def installed() -> list[str]:
    """The names of the libraries beside torch that are installed."""
    return [name for name in LIBRARIES if find_spec(name)]


def open_rival(names: Iterable[str], threads: int | None) -> Rival:
    """The rivals of these names, with as many threads as we use; None: all cores.

    True values and errors come from torch, but for ["numpy"], our own reference. Raises MinidiffError if a name is
    unknown, threads exceeds the cores, or a library is not installed.
    """
    names = list(names)
    for name in names:
        if name not in NAMES:
            raise MinidiffError(f"unknown rival {name!r}: choose from {', '.join(NAMES)}")
        if name in LIBRARIES and not find_spec(name):
            raise MinidiffError(f"{name} is not installed: pip install 'minidiff[bench]'")
    if names == ["numpy"]:
        threads = machine.use_threads(threads, "numpy")  # BLAS has them
        return Rival("numpy", lambda op, compiled: ["numpy"], _reference, machine.describe(), pause=0.05)
    _restore_openmp_waiting()
    threads = machine.use_threads(threads, "numba")
    return _libraries(names, threads)


def _libraries(names: list[str], threads: int) -> Rival:
    """torch, if it is named, and what runs in processes of its own."""
    facts = machine.describe()  # launches a kernel, since Numba must start its threads before torch is set up
    try:
        from minidiff.bench import rival
    except ImportError as error:
        remedy = "pip install torch diffusers, or compare with our NumPy reference: --against numpy"
        raise MinidiffError(f"torch and diffusers are needed ({error}): {remedy}") from None
    libraries = {name: LIBRARIES[name] for name in names if name in LIBRARIES}
    of_mode = {mode: library for library in libraries.values() for mode in library.modes}

    def modes(op: str, compiled: bool) -> list[str]:
        of_torch = rival.modes(op, compiled) if "torch" in names else []
        return of_torch + [mode for mode, library in of_mode.items() if op in library.operations]

    def prepare(mode: str, case: Case, inputs: dict[str, np.ndarray]) -> Side:
        if mode in of_mode:
            return _process(of_mode[mode], mode, case, inputs, threads)
        return Side(rival.prepare(mode, case.op, inputs, case.settings), rival.host)

    facts |= rival.set_up(threads) | {name: _version(name) for name in libraries}
    return Rival("torch", modes, prepare, facts)


def _version(name: str) -> str:
    """The version of what is imported by that name; tensorflow comes from one of several distributions."""
    return version(packages_distributions()[name][0])


def _process(library: Library, mode: str, case: Case, inputs: dict[str, np.ndarray], threads: int) -> Side:
    """A side that runs in a process of its own."""
    stack = ExitStack()
    run = stack.enter_context(worker.started(library.module, mode, case.op, inputs, case.settings, threads))
    return Side(run, lambda name, a: a, stack.close)


def _restore_openmp_waiting() -> None:
    """Undo our OpenMP settings before it starts, so that idle threads spin, which is PyTorch's default and fastest.

    PyTorch shares this OpenMP. Values that the user set are kept.
    """
    for name, value in jit.WAITING.items():
        if os.environ.get(name) == value:
            del os.environ[name]


def _reference(mode: str, case: Case, inputs: dict[str, np.ndarray]) -> Side:
    """The NumPy reference on the inputs, in float64 if that is the mode."""
    if mode == FLOAT64:
        inputs = {name: a.astype(np.float64) if a.dtype.kind == "f" else a for name, a in inputs.items()}
    return our_side(get_backend("numpy"), case, inputs)
