"""Kernels without one of their barriers: the suite must notice each, in one of the orders in which threads may run.

`make test` tries two of them, others every day; `make soak` all.
"""

import datetime
import re

import fake_cupy
import pytest
from minidiff_kernels.gpu import launch
from simulator import Module
from suite import FILES, cases, forget, wrong

BARRIER = re.compile(r"__syncthreads\(\);")
USED_BY = {"common": "optim", "product": "winograd"}  # whose barriers show in which family
TIMES = {path.stem: len(BARRIER.findall(path.read_text())) for path in launch.HERE.glob("*.cu")}
MUTANTS = [(file, i) for file, count in sorted(TIMES.items()) for i in range(count)]
TODAY = datetime.date.today().toordinal()
QUICK = [mutant for mutant in MUTANTS if mutant[0] in ("common", "elementwise", "norm")]  # the others compile for long
SAMPLE = {MUTANTS[TODAY % len(MUTANTS)], QUICK[TODAY % len(QUICK)]}


def without_barrier(file: str, which: int) -> str:
    """The source of a family in which the file's barrier of that number is missing."""
    family = USED_BY.get(file, file)
    texts = {name: (launch.HERE / f"{name}.cu").read_text() for name in (*launch.IN_FRONT[family], family)}
    found = list(BARRIER.finditer(texts[file]))[which]
    texts[file] = texts[file][: found.start()] + texts[file][found.end() :]
    return "".join(texts.values())


def survives(family: str) -> bool:
    """Whether no case of the family notices anything."""
    for name, case in cases(family):
        for order in (1, 2, 0):
            Module.order = order
            if wrong(name, case):
                return False
    return True


@pytest.mark.parametrize(
    "file, which",
    [pytest.param(*m, marks=() if m in SAMPLE else pytest.mark.soak, id=f"{m[0]}-{m[1]}") for m in MUTANTS],
)
def test_a_missing_barrier_is_noticed(monkeypatch, file, which):
    family, whole = USED_BY.get(file, file), launch.source
    mutant = without_barrier(file, which)
    monkeypatch.setattr(launch, "source", lambda name: mutant if name == family else whole(name))
    monkeypatch.setattr(fake_cupy.RawModule, "flags", ("-O1",))
    forget()
    try:
        assert not survives(family)
    finally:
        Module.order = 0
        forget()


def test_whole_kernels_survive():
    """The very comparison finds nothing where nothing is wrong."""
    for family in FILES:
        name, case = cases(family)[-1]
        assert wrong(name, case) is None
