"""Ranks that are killed or stopped at any moment, again and again: all end soon, and nothing of the run is lost."""

import os
import signal
import time

import many_ranks
import numpy as np
import pytest
import small_ranks
from small_runs import read_safetensors, rows

from minidiff.training import state

PARTS, EVERY = 4, 3
SOON = 10  # seconds
pytestmark = [pytest.mark.soak, many_ranks.needed]


def life(folder, steps, rng, number):
    """Start or continue the run, and send the signal to some rank at a random moment; (exit code, seconds until it)."""
    n = int(rng.choice([2, 4]))
    arguments = (small_ranks.__file__, folder, steps, EVERY, PARTS)
    with many_ranks.start(n, *arguments, stderr=many_ranks.subprocess.STDOUT) as child:
        watchdog = time.monotonic() + 120
        processes, lines, wanted = [], 0, rng.integers(0, 12)
        for line in child.stdout:
            assert time.monotonic() < watchdog
            processes += [int(word) for word in line.split()[1:]] if line.startswith("process") else []
            lines += line.startswith("step")
            if len(processes) == n and lines >= wanted:
                break
        time.sleep(rng.uniform(0, 0.05))
        begin = time.monotonic()
        if child.poll() is None:
            try:
                os.kill(int(rng.choice(processes)), number)
            except ProcessLookupError:  # it was done
                pass
        child.communicate(timeout=60)
        return child.returncode, time.monotonic() - begin


def check_whole(folder, reference):
    """What must hold between two lives: the state can be read, and the log is the beginning of the reference's."""
    if state.state_file(folder).exists():
        step = int(read_safetensors(state.state_file(folder))[1]["step"])
        assert len(rows(folder)) >= step if step else True
    if (folder / "metrics.csv").exists():
        assert rows(folder) == rows(reference)[: len(rows(folder))]


def check_same(folder, reference):
    assert rows(folder) == rows(reference)
    a, b = (read_safetensors(state.state_file(run))[0] for run in (folder, reference))
    assert {name: x.tobytes() for name, x in a.items()} == {name: x.tobytes() for name, x in b.items()}


@pytest.mark.parametrize("number, times, steps", [(signal.SIGKILL, 20, 120), (signal.SIGTERM, 200, 1200)])
def test_at_random_moments(tmp_path, number, times, steps):
    rng = np.random.default_rng(0)
    small_ranks.main(tmp_path / "alone", steps, EVERY, PARTS)
    for _ in range(times):
        code, seconds = life(tmp_path / "run", steps, rng, number)
        print(code, f"{seconds:.2f}", len(rows(tmp_path / "run")) if (tmp_path / "run/metrics.csv").exists() else 0)
        assert seconds < SOON
        check_whole(tmp_path / "run", tmp_path / "alone")
    small_ranks.main(tmp_path / "run", steps, EVERY, PARTS)
    check_same(tmp_path / "run", tmp_path / "alone")
