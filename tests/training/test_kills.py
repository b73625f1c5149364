"""SIGKILL at any moment, in saving too: what came after the last checkpoint is done again, and nothing else is lost.

A process of its own trains, is killed, and another continues, until the run is done. Its files are then those of
a run that was never killed.
"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import small_runs
from small_runs import contents, go_on, kept_states, new_run, read_safetensors, rows

from minidiff.training import state

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

STEPS, EVERY = 12, 3
STATE = ["fsync", "replace"] * 2  # by its step's name, and by that of the newest
EXPORT = ["fsync", "replace"] * 4  # weights, config.json, scheduler_config.json, model_index.json
LOSSES, BEST = ["fsync", "replace"], ["fsync", "replace"]  # checkpoints.csv; each of these checkpoints is the best yet
CHECKPOINT = ["fsync metrics", *LOSSES, *STATE, *BEST, *EXPORT]
EVENTS = STATE + EXPORT + CHECKPOINT * (STEPS // EVERY)
FIRST, LAST = len(STATE + EXPORT), len(EVENTS) - len(CHECKPOINT)


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("never") / "run"
    go_on(new_run(folder, STEPS), EVERY)
    return folder


def process(folder, event=0, backend="numpy", steps=STEPS):
    command = [sys.executable, small_runs.__file__, folder, str(steps), str(EVERY), backend, str(event)]
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def finish(child):
    """Wait for its end; whether it was killed. Any other end than that and the good one is a failure."""
    out, _ = child.communicate(timeout=300)
    assert child.returncode in (0, -signal.SIGKILL), out
    return child.returncode != 0


def check_whole(folder, reference):
    """What must hold of a run between its processes, whatever happened to the last one."""
    step = 0
    if state.state_file(folder).exists():
        _, metadata = read_safetensors(state.state_file(folder))
        step = int(metadata["step"])
    if (folder / "metrics.csv").exists():
        assert rows(folder) == rows(reference)[: len(rows(folder))]
        assert len(rows(folder)) >= step


def without_leftovers(folder):
    """Its contents, less the lock, and the halves of files that were in the making."""
    return {name: a for name, a in contents(folder).items() if not name.endswith((".lock", ".part"))}


def killed_at(folder, event, reference):
    assert finish(process(folder, event))
    check_whole(folder, reference)
    assert not finish(process(folder))
    assert without_leftovers(folder) == contents(reference)
    assert kept_states(reference).items() <= kept_states(folder).items()  # an older one may have outlived its turn


# The first state before its rename, between its two names, in the export; at a checkpoint: before its loss is noted,
# before the state's rename, before it is the newest, before it is the best, in the export; the same at the last step.
MOMENTS = [2, 4, 7, *(begin + k for begin in (FIRST, LAST) for k in (3, 5, 7, 9, 12)), len(EVENTS)]


@pytest.mark.parametrize("event", MOMENTS)
def test_killed_on_the_way_to_the_disk(tmp_path, event, never_killed):
    killed_at(tmp_path / "run", event, never_killed)


@pytest.mark.soak
@pytest.mark.parametrize("event", range(1, len(EVENTS) + 1))
def test_killed_anywhere_on_the_way_to_the_disk(tmp_path, event, never_killed):
    killed_at(tmp_path / "run", event, never_killed)


def test_there_are_no_other_moments(tmp_path):
    """The list above is what a run does."""
    out, _ = process(tmp_path / "run").communicate(timeout=300)
    calls = [line.split()[0] for line in out.splitlines() if not line.startswith("step")]
    assert calls == [event.split()[0] for event in EVENTS]


def kill_at_random(folder, rng, backend, steps, reference):
    """One life: killed within three milliseconds after some event or step, if it is not done before."""
    child = process(folder, backend=backend, steps=steps)
    for _ in range(rng.integers(1, 40)):
        child.stdout.readline()
    time.sleep(rng.uniform(0, 0.003))
    child.kill()
    finish(child)
    check_whole(folder, reference)


@pytest.mark.parametrize(
    "backend, steps, kills",
    [
        ("numpy", 24, 3),
        pytest.param("numpy", 500, 100, marks=pytest.mark.soak),
        pytest.param("numba", 250, 50, marks=pytest.mark.soak),
    ],
)
def test_killed_at_random_moments(tmp_path, backend, steps, kills):
    rng = np.random.default_rng(0)
    assert not finish(process(tmp_path / "never", backend=backend, steps=steps))
    for _ in range(kills):
        kill_at_random(tmp_path / "run", rng, backend, steps, tmp_path / "never")
    assert not finish(process(tmp_path / "run", backend=backend, steps=steps))
    assert [int(row.split(",")[0]) for row in rows(tmp_path / "run")] == list(range(1, steps + 1))
    assert without_leftovers(tmp_path / "run") == without_leftovers(tmp_path / "never")
    assert kept_states(tmp_path / "never").items() <= kept_states(tmp_path / "run").items()


def cifar10_set(folder):
    """CIFAR-10's binary version, of pictures that are noise: a hundred to learn from, twenty held out."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name in (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"):
        records = rng.integers(0, 256, (20, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
    return folder


@pytest.mark.soak
def test_the_command_on_cifar10_killed_at_random_moments(tmp_path):
    """A recipe, with all that is random: classes, flips, shifts, a batch in parts. Its losses are the same bits."""
    data, rng = cifar10_set(tmp_path / "data"), np.random.default_rng(0)
    choices = "--recipe small-cpu --steps 30 --batch-size 8 --accumulate 2 --pad-crop 2 --threads 1".split()

    def command(name, *more):
        arguments = ["train", data, "--out", tmp_path / name, "--checkpoint-every", "5", *more]
        environment = {**os.environ, "NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-m", "minidiff", *arguments], stdout=subprocess.PIPE, env=environment)

    assert not finish(command("never", *choices))
    for until in (1, 4, 9, 14, 22, 27):
        there = state.state_file(tmp_path / "run").exists()
        child = command("run", *(["--resume"] if there else choices))
        log = tmp_path / "run" / "metrics.csv"
        while not log.exists() or log.read_bytes().count(b"\n") <= until:
            assert child.poll() is None
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        child.kill()
        assert finish(child)
        lines = rows(tmp_path / "run")
        assert lines == rows(tmp_path / "never")[: len(lines)] and len(lines) >= until
    assert not finish(command("run", "--resume"))
    assert rows(tmp_path / "run") == rows(tmp_path / "never") and len(rows(tmp_path / "run")) == 30
    states = [read_safetensors(state.state_file(tmp_path / name))[0] for name in ("run", "never")]
    assert all(np.array_equal(states[0][name], states[1][name]) for name in state.BUFFERS)
    checkpoints = [(tmp_path / name / "checkpoints.csv").read_text() for name in ("run", "never")]
    assert checkpoints[0] == checkpoints[1] and checkpoints[0].count("\n") == 7
