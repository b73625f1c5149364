"""Training on several ranks: the bits of one process, whatever their number, and one line for whatever goes wrong."""

import kinds_on_ranks
import many_ranks
import pytest
import small_ranks
from small_runs import idx_set, read_safetensors, rows

from minidiff.training import state
from minidiff.training.parallel import agreement

STEPS, EVERY, PARTS = 12, 4, 4
pytestmark = many_ranks.needed


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    small_ranks.main(folder, STEPS, EVERY, PARTS)
    return folder


def on_ranks(n, folder, steps=STEPS, *fault, parts=PARTS):
    return many_ranks.run(n, small_ranks.__file__, folder, steps, EVERY, parts, *fault)


def check_same(folder, alone):
    """Losses, weights, moments, averages and the history of losses of two runs have the same bits."""
    assert rows(folder) == rows(alone)
    a, b = (
        {name: array.tobytes() for name, array in read_safetensors(state.state_file(run))[0].items()}
        for run in (folder, alone)
    )
    assert a == b and len(a) == 6


def lines_of(err):
    """Our lines on stderr; the launcher's own are around them, at times on the same line."""
    return [line.strip() for line in err.splitlines() if line.strip().startswith("minidiff:")]


def test_two_ranks_then_one_then_four(tmp_path, alone):
    """Stopped at steps 4 and 8, the steps of checkpoints."""
    run = tmp_path / "run"
    code, _, err = on_ranks(2, run, STEPS, "stop", 1, 3)
    assert (code, len(rows(run))) == (130, 4), err
    with pytest.raises(SystemExit, match="130"):
        small_ranks.main(run, STEPS, EVERY, PARTS, "stop", 0, 7)
    assert len(rows(run)) == 8
    code, out, err = on_ranks(4, run)
    assert code == 0, err
    assert [line for line in out.splitlines() if line.startswith("step")] == [f"step {k}" for k in range(9, 13)]
    check_same(run, alone)


def test_a_rank_that_is_killed(tmp_path, alone):
    """A line names it, the last checkpoint is whole, and the run continues from it on another number of ranks."""
    run = tmp_path / "run"
    code, out, err = on_ranks(2, run, STEPS, "kill", 1, 6)
    assert code not in (0, 130) and "rank 1" in err
    assert len(lines_of(err)) <= 1
    assert read_safetensors(state.state_file(run))[1]["step"] == "4"
    small_ranks.main(run, STEPS, EVERY, PARTS)
    check_same(run, alone)


@pytest.mark.parametrize("fault, step, message", [
    ("error", 2, "minidiff: rank 1: no room on this machine: make some; the checkpoint of step 0 is kept in"),
    ("weights", 2, "minidiff: step 4: the weights of rank 1 are no longer those of the others"),
    ("version", 0, "minidiff: minidiff is '0.1.0' on rank 0 and '0.0.1' on rank 1"),
    ("data", 0, "minidiff: the data, by its fingerprint, is"),
])  # fmt: skip
def test_an_error_is_one_line_and_ends_all(tmp_path, fault, step, message):
    code, _, err = on_ranks(2, tmp_path / "run", STEPS, fault, 1, step)
    lines = lines_of(err)
    assert (code, len(lines)) == (2, 1) and lines[0].startswith(message), err
    assert lines[0].count("is kept in") <= 1


def test_a_number_of_ranks_that_does_not_divide_the_parts(tmp_path):
    code, _, err = on_ranks(3, tmp_path / "run")
    (line,) = lines_of(err)
    assert code == 2 and "3 processes cannot share a batch of 4 parts (--accumulate) equally: start 1, 2, 4" in line


def test_a_bug_on_one_rank_ends_all(tmp_path):
    code, _, err = on_ranks(2, tmp_path / "run", STEPS, "bug", 1, 2)
    assert code == 1 and "ZeroDivisionError: of this rank" in err


@pytest.mark.parametrize("slow, named", [(2.0, ["rank 1 on b is slow: 2 s a step, the others 1 s"]), (1.4, [])])
def test_a_slow_rank_is_named_once(monkeypatch, caplog, slow, named):
    """By medians over twenty steps: one late step of another rank does not count."""
    monkeypatch.setattr(agreement.ranks, "size", lambda: 3)
    late = iter([9.0] + [1.0] * 99)
    times = lambda value: [[False, next(late), "a"], [False, slow, "b"], [False, 1.0, "c"]]  # noqa: E731
    monkeypatch.setattr(agreement.ranks, "gather", times)
    pace = agreement.Pace()
    with caplog.at_level("INFO"):
        found = [(pace.agree(False), len(caplog.messages))[1] for _ in range(45)]
    assert caplog.messages == named
    assert found[18] == 0


def test_one_rank_stops_all(monkeypatch):
    monkeypatch.setattr(agreement.ranks, "size", lambda: 2)
    pace = agreement.Pace()
    for stops in ([False, False], [False, True]):
        monkeypatch.setattr(agreement.ranks, "gather", lambda value, stops=stops: [[s, 0.0, "a"] for s in stops])
        assert pace.agree(False) == any(stops)


def test_every_kind_of_run_has_the_bits_of_one_process(tmp_path):
    """Of MPI's own reduction the weights are equal up to rounding: 1e-6 of their norm. The GPU is the simulator's."""
    code, out, err = many_ranks.run(2, kinds_on_ranks.__file__, tmp_path)
    assert code == 0, err
    found = dict(line.split() for line in out.splitlines())
    assert found.pop("mpi") in ("same", "close")
    assert found == dict.fromkeys(
        ("unet", "consistency", "muon", "vae", "classifier", "points", "text", "lora", "word", "gpu"), "same"
    )


def test_the_command(tmp_path):
    """Rank 0 alone prints; a command that runs as one process refuses several."""
    train = f"train {idx_set(tmp_path / 'set')} --out {tmp_path / 'run'} --steps 2 --batch-size 4 --width 8 --depth 1"
    code, out, err = many_ranks.run(2, "-m", "minidiff", *train.split(), "--threads", 1, "--backend", "numpy")
    assert code == 0 and out.count("processes: 2") == out.count("Done: step 2") == 1, out + err
    assert state.open_run(tmp_path / "run").config.accumulate == 2
    code, out, err = many_ranks.run(2, "-m", "minidiff", "info")
    message = "minidiff: minidiff info runs as one process: start it without mpiexec"
    assert (code, lines_of(err)) == (2, [message]), err
