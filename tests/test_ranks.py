"""The collectives of minidiff.ranks: alone, and on three ranks."""

import subprocess
import sys

import many_ranks
import numpy as np
import pytest

from minidiff import ranks

PROGRAM = """
import sys
import numpy as np
from minidiff import ranks
r = ranks.rank()
sent = np.full((r, 2), r, np.float32)
found = ranks.concatenate(sent)
assert found.dtype == np.float32 and found.tolist() == [[1, 1], [2, 2], [2, 2]], found
assert ranks.gather({"rank": r}) == [{"rank": k} for k in range(3)]
assert ranks.broadcast(["of", r]) == ["of", 0]
items = list(range(8))
assert sum(ranks.gather(items[ranks.share(8)]), []) == items
print(f"{r} of {ranks.size()}")
"""


@many_ranks.needed
def test_three_ranks():
    code, out, err = many_ranks.run(3, "-c", PROGRAM)
    assert (code, sorted(out.splitlines())) == (0, ["0 of 3", "1 of 3", "2 of 3"]), err


def test_alone():
    a = np.arange(6).reshape(3, 2)
    assert (ranks.size(), ranks.rank(), ranks.share(8)) == (1, 0, slice(0, 8))
    assert ranks.gather({"a": 1}) == [{"a": 1}] and ranks.broadcast(7) == 7 and ranks.concatenate(a) is a


def alone(code, **environment):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=many_ranks.environment() | environment, capture_output=True, text=True)


def test_mpi4py_is_not_imported_without_a_launcher():
    done = alone("import sys; from minidiff import ranks; ranks.size(); assert 'mpi4py' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_missing_mpi4py():
    done = alone(
        "import sys; sys.modules['mpi4py'] = None; from minidiff import ranks; ranks.size()", OMPI_COMM_WORLD_SIZE="2"
    )
    assert "pip install 'minidiff[mpi]'" in done.stderr.splitlines()[-1]


@many_ranks.needed
def test_a_launcher_of_another_mpi():
    done = alone("from minidiff import ranks; ranks.size()", SLURM_STEP_NUM_TASKS="2")
    assert "the launcher started 2 processes, and Open MPI" in done.stderr.splitlines()[-1]
    assert "sees 1" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ranks.LAUNCHED)
def test_launchers(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert ranks.launched() == 1
    monkeypatch.setenv(name, "12")
    assert ranks.launched() == 12


def test_mpiexec_within_a_job_of_slurm(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert ranks.launched() == 2
