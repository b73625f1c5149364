"""Mutants: kernels that lack one of their barriers. The suite must fail for each, in one of the orders of threads.

`make test` runs a fixed sample, `make soak` all of them.
"""

import re

import fake_cupy
import pytest
from minidiff_kernels.gpu import launch
from simulator import Module
from suite import FILES, cases, clear_compiled, mismatch

BARRIER = re.compile(r"__syncthreads\(\);")
USED_BY = {"common": "optim", "product": "winograd"}  # the family that tests a preamble's barriers
BARRIERS = {path.stem: len(BARRIER.findall(path.read_text())) for path in launch.HERE.glob("*.cu")}
MUTANTS = [(file, i) for file, count in sorted(BARRIERS.items()) for i in range(count)]
SAMPLE = {("common", 0), ("elementwise", 0), ("norm", 0)}  # the families that compile fastest


def without_barrier(file: str, which: int) -> str:
    """The source of a family without barrier number `which` of that file."""
    family = USED_BY.get(file, file)
    texts = {name: (launch.HERE / f"{name}.cu").read_text() for name in (*launch.PREAMBLES[family], family)}
    found = list(BARRIER.finditer(texts[file]))[which]
    texts[file] = texts[file][: found.start()] + texts[file][found.end() :]
    return "".join(texts.values())


def survives(family: str) -> bool:
    """Whether all cases of the family pass."""
    for name, case in cases(family):
        for order in (1, 2, 0):
            Module.order = order
            if mismatch(name, case):
                return False
    return True


@pytest.mark.parametrize(
    "file, which",
    [pytest.param(*m, marks=() if m in SAMPLE else pytest.mark.soak, id=f"{m[0]}-{m[1]}") for m in MUTANTS],
)
def test_a_mutant_fails(monkeypatch, file, which):
    family, whole = USED_BY.get(file, file), launch.source
    mutant = without_barrier(file, which)
    monkeypatch.setattr(launch, "source", lambda name: mutant if name == family else whole(name))
    monkeypatch.setattr(fake_cupy.RawModule, "flags", ("-O1",))
    clear_compiled()
    try:
        assert not survives(family)
    finally:
        Module.order = 0
        clear_compiled()


def test_unchanged_kernels_survive():
    """The same comparison passes without a mutation."""
    for family in FILES:
        name, case = cases(family)[-1]
        assert mismatch(name, case) is None
