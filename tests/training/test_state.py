"""A run's folder: the one state file, its log, its lock."""

import json
import math
import os
import shutil
import stat
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from small_runs import go_on, network, new_run, read_safetensors, reopen, rows, tree

from minidiff.diffusion.schedule import cosine_schedule
from minidiff.errors import MinidiffError
from minidiff.formats import networks
from minidiff.formats.run_lock import lock_run
from minidiff.training import checkpoints, state
from minidiff.training.config import TrainConfig
from minidiff.training.kinds import unet_run
from minidiff.training.kinds.unet_run import UNetRun
from minidiff.training.log import TrainingLog, read_log, read_quarter_losses, truncate_log
from minidiff.training.state import new_run as start
from minidiff.training.state import open_run, state_file
from minidiff.training.step import StepStats

HEADER = "step,loss,grad_norm,lr,loss_q1,loss_q2,loss_q3,loss_q4\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 4 steps out of 12, stopped; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    go_on(new_run(folder), stop_at=4)
    return folder


@pytest.fixture
def run_folder(trained, tmp_path):
    """A copy of it, with no state to fall back on."""
    folder = shutil.copytree(trained, tmp_path / "run")
    for path in checkpoints.kept_states(folder).values():
        path.unlink()
    return folder


def refused(folder, match):
    before = tree(folder)
    with pytest.raises(MinidiffError, match=match) as caught:
        open_run(folder)
    assert "\n" not in str(caught.value)
    assert tree(folder) == before


# The state


def test_everything_comes_back(trained):
    run = new_run(trained.parent / "twin")
    go_on(run, stop_at=4)
    again = open_run(trained)
    assert again.step == 4
    assert again.config == run.config and again.unet.config == run.unet.config
    np.testing.assert_array_equal(again.schedule.betas, run.schedule.betas)
    assert again.schedule.prediction_type == "v_prediction"
    for name in state.BUFFERS:
        np.testing.assert_array_equal(getattr(again.optimizer, name), getattr(run.optimizer, name))
    assert len({getattr(run.optimizer, name).tobytes() for name in state.BUFFERS}) == 4


def test_the_state_is_written_before_step_1(tmp_path):
    run = new_run(tmp_path / "run")
    _, metadata = read_safetensors(state_file(run.folder))
    assert metadata["step"] == "0"
    assert json.loads(metadata["config"])["seed"] == 5
    assert rows_or_none(tmp_path / "run") is None


def rows_or_none(folder):
    return rows(folder) if (folder / "metrics.csv").exists() else None


def test_the_folder_holds_what_it_says_and_nothing_else(trained):
    assert set(tree(trained)) == {
        "training/state-000000.safetensors", "training/state-000004.safetensors",
        "metrics.csv", "model_index.json", "scheduler", "scheduler/scheduler_config.json", "training",
        "training/state.safetensors", "unet", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    }  # fmt: skip


def test_the_export_is_the_average(trained):
    run = open_run(trained)
    unet = networks.load_unet(trained, "numpy")
    with run.optimizer.averaged():
        for (name, p), (own, q) in zip(run.unet.named_parameters(), unet.named_parameters(), strict=True):
            assert name == own
            np.testing.assert_array_equal(p.numpy(), q.numpy())
    assert not np.array_equal(run.optimizer.p, run.optimizer.ema)


@pytest.mark.skipif(os.name != "posix", reason="needs file modes")
def test_files_are_as_readable_as_others(tmp_path):
    before = os.umask(0o027)
    try:
        new_run(tmp_path / "run")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert modes == {0o640}


@pytest.mark.parametrize("stale", ["missing", "older", "damaged"])
def test_a_stale_export_is_written_anew(run_folder, stale):
    weights = run_folder / "unet" / networks.WEIGHTS
    right = weights.read_bytes()
    if stale == "older":
        tensors, metadata = read_safetensors(weights)
        save_file({name: a * 2 for name, a in tensors.items()}, weights, metadata)
    else:
        weights.write_bytes(b"") if stale == "damaged" else weights.unlink()
    reopen(run_folder)
    assert weights.read_bytes() == right


def test_opening_changes_nothing(run_folder):
    with open(run_folder / "metrics.csv", "a") as file:
        file.write("5,0.1")
    (run_folder / "model_index.json").unlink()
    before = tree(run_folder)
    run = open_run(run_folder)
    assert tree(run_folder) == before
    state.roll_back(run)
    assert (run_folder / "model_index.json").exists() and len(rows(run_folder)) == 4


# What is refused


def test_no_run(tmp_path):
    refused(tmp_path, "holds no run.*start one with minidiff train")
    refused(tmp_path / "missing", "no such folder; give a run of minidiff train")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "holds no run")
    state_file(tmp_path).mkdir(parents=True)
    refused(tmp_path, "holds no run")


@pytest.mark.parametrize("name", [*state.WRITTEN, "training/best.safetensors"])
def test_what_is_not_of_a_run_is_not_overwritten(tmp_path, name):
    """A file, a folder, or a link that leads nowhere."""
    for i, make in enumerate((lambda path: path.write_text("mine"), Path.mkdir, lambda path: path.symlink_to("no"))):
        path = tmp_path / str(i) / name
        path.parent.mkdir(parents=True)
        make(path)
        before = tree(tmp_path)
        with pytest.raises(MinidiffError, match="holds a .*choose another folder"):
            new_run(tmp_path / str(i))
        assert tree(tmp_path) == before


def test_a_run_is_not_overwritten(run_folder):
    before = tree(run_folder)
    with pytest.raises(MinidiffError, match="holds a run already.*--resume"):
        new_run(run_folder)
    assert tree(run_folder) == before


@pytest.mark.parametrize("name", ["metrics.csv", "checkpoints.csv", "unet", "scheduler", "model_index.json"])
def test_what_is_not_ours_is_not_overwritten(tmp_path, name):
    (tmp_path / name).mkdir()
    before = tree(tmp_path)
    with pytest.raises(MinidiffError, match=f"holds a {name}.*choose another folder"):
        new_run(tmp_path)
    assert tree(tmp_path) == before


def test_other_files_do_not_matter(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    new_run(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_unknown_backend_leaves_nothing(tmp_path):
    config = TrainConfig("noise", backend="cuda")
    with pytest.raises(MinidiffError, match="unknown backend 'cuda'.*numpy, numba"):
        start(UNetRun, tmp_path / "run", config, network(), cosine_schedule(20))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 0.3, 0.9, -1])
def test_a_truncated_state(run_folder, keep):
    path = state_file(run_folder)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    refused(run_folder, "state.safetensors: damaged or not safetensors")


@pytest.mark.parametrize("length", [0, 1, 2**20, 10**8 + 1, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_a_wrong_length(run_folder, length):
    path = state_file(run_folder)
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    refused(run_folder, "state.safetensors: damaged or not safetensors")


def test_surplus_bytes(run_folder):
    with open(state_file(run_folder), "ab") as file:
        file.write(b"\0")
    refused(run_folder, "damaged or not safetensors")


def rewrite(folder, tensors=None, **metadata):
    """The state with other arrays or metadata; None drops one."""
    path = state_file(folder)
    old, information = read_safetensors(path)
    kept = {key: value for key, value in {**information, **metadata}.items() if value is not None}
    save_file({k: a for k, a in {**old, **(tensors or {})}.items() if a is not None}, path, kept)


@pytest.mark.parametrize("name", ["p", "ema", "m", "v"])
def test_arrays_of_another_shape(run_folder, name):
    good = read_safetensors(state_file(run_folder))[0][name]
    for wrong in (good[:-1].copy(), np.append(good, np.float32(0)), good[None], None):
        rewrite(run_folder, {name: wrong})
        refused(run_folder, f"{name} does not fit|implies at least .* parameters")
    rewrite(run_folder, {name: good.astype(np.float64)})
    refused(run_folder, f"{name} is F64, and only F32, F16, BF16 are read")


@pytest.mark.parametrize("key", ["step", "config", "unet", "schedule"])
@pytest.mark.parametrize(
    "value", [None, "", "{", "null", "[]", "{}", "nan", "[" * 100_000, "-1", '{"data": 1}', "9" * 5000]
)
def test_damaged_metadata(run_folder, key, value):
    rewrite(run_folder, **{key: value})
    refused(run_folder, "damaged|must be 0 <= skipped|expected an object|must be keys|not supported")


@pytest.mark.parametrize(
    "changes",
    [
        {
            "block_out_channels": [8, 16384],
            "down_block_types": ["DownBlock2D"] * 2,
            "up_block_types": ["UpBlock2D"] * 2,
        },
        {"layers_per_block": 64}, {"num_class_embeds": 1_000_000},
    ],
)  # fmt: skip
def test_a_network_beyond_the_file_is_not_built(run_folder, changes, monkeypatch):
    """The largest would take hundreds of gigabytes."""
    _, metadata = read_safetensors(state_file(run_folder))
    rewrite(run_folder, unet=json.dumps({**json.loads(metadata["unet"]), **changes}))
    monkeypatch.setattr(unet_run, "UNet", None)
    refused(run_folder, "implies at least [0-9,]+ parameters")


@pytest.mark.parametrize(
    "name, value", [("steps", 0), ("lr", -1), ("batch_size", 1e9), ("backend", "tpu"), ("seed", "x")]
)
def test_absurd_choices(run_folder, name, value):
    _, metadata = read_safetensors(state_file(run_folder))
    rewrite(run_folder, config=json.dumps({**json.loads(metadata["config"]), name: value}))
    refused(run_folder, name)


def test_metadata_that_make_no_sense_are_those_of_a_file(run_folder):
    """Its name stands in the message, whatever is wrong."""
    _, metadata = read_safetensors(state_file(run_folder))
    config, schedule = json.loads(metadata["config"]), json.loads(metadata["schedule"])
    for damage in (
        {"config": "null"}, {"config": json.dumps({**config, "lr": math.nan})}, {"unet": "[]"}, {"schedule": "[1]"},
        {"schedule": json.dumps({**schedule, "num_train_timesteps": 10**9})},
    ):  # fmt: skip
        rewrite(run_folder, **{**metadata, **damage})
        refused(run_folder, r"state\.safetensors: ")


@given(data=st.data())
def test_any_damage_is_refused_or_harmless(trained, tmp_path_factory, data):
    """Some bytes of the header, metadata included, are others."""
    good = state_file(trained).read_bytes()
    (length,) = struct.unpack("<Q", good[:8])
    places = st.tuples(st.integers(0, 7 + length), st.integers(0, 255))
    damaged = bytearray(good)
    for place, byte in data.draw(st.lists(places, min_size=1, max_size=3)):
        damaged[place] = byte
    folder = tmp_path_factory.mktemp("damaged")
    state_file(folder).parent.mkdir()
    state_file(folder).write_bytes(damaged)
    (folder / "metrics.csv").write_bytes((trained / "metrics.csv").read_bytes())
    try:
        reopen(folder)
    except MinidiffError as error:
        assert "\n" not in str(error)


# Writing fails


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_last_state(run_folder, monkeypatch, call):
    before = tree(run_folder)
    run = reopen(run_folder)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(MinidiffError, match="No space left on device.*the checkpoint of step 4 is kept"):
        go_on(run, checkpoint_every=3)
    monkeypatch.undo()
    after = tree(run_folder)
    assert after.pop("metrics.csv").startswith(before.pop("metrics.csv"))
    assert after == before
    assert reopen(run_folder).step == 4


def test_a_log_that_cannot_be_written(run_folder, monkeypatch):
    run = open_run(run_folder)

    def full(self, stats, lr):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TrainingLog, "write", full)
    with pytest.raises(MinidiffError, match="No space left on device.*the checkpoint of step 4 is kept"):
        go_on(run)


# The log


def test_numbers_stand_in_full_precision(tmp_path):
    metrics = TrainingLog(tmp_path / "metrics.csv")
    errors = [lambda: np.float32([1, 3]), lambda: np.float32([0.1, 7])]
    quarters = np.array([3, 3, 0, 1])
    metrics.write(StepStats(1, [lambda: np.float32(1 / 3)], lambda: np.float64(2) ** 0.5, errors, quarters), 1e-3 / 7)
    assert (tmp_path / "metrics.csv").read_text().endswith("\n")  # at once, for those who watch
    metrics.close()
    (line,) = rows(tmp_path)
    cells = line.split(",")
    assert [float(cell) for cell in cells[:4]] == [1, float(np.float32(1 / 3)), 2**0.5, 1e-3 / 7]
    assert cells[4:] == [repr(float(np.float32(0.1))), "7.0", "", "2.0"]
    assert read_log(tmp_path / "metrics.csv") == ([1], [float(np.float32(1 / 3))])
    np.testing.assert_equal(read_quarter_losses(tmp_path / "metrics.csv"), [[np.float32(0.1)], [7], [np.nan], [2]])


def test_the_log_is_continued(tmp_path):
    for step in (1, 2):
        metrics = TrainingLog(tmp_path / "metrics.csv")
        metrics.write(StepStats(step, [lambda: np.float32(0.5)], lambda: 1.0), 0.1)
        metrics.flush()
        metrics.close()
    assert rows(tmp_path) == ["1,0.5,1.0,0.1,,,,", "2,0.5,1.0,0.1,,,,"]


def log(*lines):
    return HEADER + "".join(lines)


LINES = [f"{step},0.{step},1.0,0.1,0.2,,0.{step},\n" for step in range(1, 7)]


@pytest.mark.parametrize(
    "tail",
    ["", "7,0", "7", "7,0.5,1.0,0.", "\0\0\0\0", "7,0.7,1.0,0.1\n8,0.8", "é", "\n", "7,0.7,1.0,0.1,,,,\n8,0.8"],
)
@pytest.mark.parametrize("step", [0, 1, 5, 6])
def test_cut(tmp_path, step, tail):
    path = tmp_path / "metrics.csv"
    path.write_text(log(*LINES) + tail, encoding="utf-8")
    assert read_log(path)[0][:6] == [1, 2, 3, 4, 5, 6]
    truncate_log(path, step)
    assert path.read_text() == log(*LINES[:step])


@pytest.mark.parametrize("step", [0, 5, 6])
def test_an_older_runs_log_gets_the_new_columns(tmp_path, step):
    path, older = tmp_path / "metrics.csv", [",".join(line.split(",")[:4]) + "\n" for line in LINES]
    path.write_text("step,loss,grad_norm,lr\n" + "".join(older) + "7,0.7")
    assert read_log(path) == (list(range(1, 7)), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert np.isnan(read_quarter_losses(path)).all()
    truncate_log(path, step)
    assert path.read_text() == log(*(line[:-1] + ",,,,\n" for line in older[:step]))


@pytest.mark.parametrize("content", [None, "", "st", "step,loss", HEADER[:-1], HEADER])
def test_a_log_that_had_not_begun(tmp_path, content):
    path = tmp_path / "metrics.csv"
    if content is not None:
        path.write_text(content)
    truncate_log(path, 0)
    assert path.read_text() == HEADER


@pytest.mark.parametrize(
    "content",
    [
        None, "", log(), log(*LINES[:2]), log(LINES[0], LINES[2], LINES[3]), log(LINES[0], LINES[0], *LINES[1:]),
        log(*LINES[1:]), log(*LINES[:2], "3,x,1.0,0.1,,,,\n", *LINES[3:]), log(*LINES[:2], "3,0.3\n", *LINES[3:]),
        log(*LINES[:2], "3,0.3,1.0,0.1\n", *LINES[3:]),
        log(*LINES)[: len(log(*LINES[:3])) - 1],
    ],
)  # fmt: skip
def test_a_log_with_a_hole_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "metrics.csv"
    if content is not None:
        path.write_text(content)
    before = tree(tmp_path)
    with pytest.raises(MinidiffError, match="metrics.csv: ends at step [0-2], the state is at 3"):
        truncate_log(path, 3)
    assert tree(tmp_path) == before


# Only one


def test_the_lock_keeps_what_is_written_in_a_file_of_its_name(tmp_path):
    (tmp_path / ".lock").write_text("of another program")
    with lock_run(tmp_path):
        pass
    assert tree(tmp_path) == {".lock": b"of another program"}


def test_only_one(tmp_path):
    with lock_run(tmp_path / "run"):
        with pytest.raises(MinidiffError, match="another process is training here"):
            with lock_run(tmp_path / "run"):
                pass
        with lock_run(tmp_path / "other"):
            pass
    with lock_run(tmp_path / "run"):
        pass


def test_a_block_that_fails_leaves_nothing(tmp_path):
    for folder in (tmp_path / "a" / "b" / "c", tmp_path / "here"):
        (tmp_path / "here").mkdir(exist_ok=True)
        with pytest.raises(MinidiffError, match="no such data"), lock_run(folder):
            raise MinidiffError("no such data")
    assert tree(tmp_path) == {"here": None}


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    with lock_run(tmp_path / "run"):
        pass
    before = tree(tmp_path)
    with pytest.raises(MinidiffError), lock_run(tmp_path / "run"):
        raise MinidiffError("no such data")
    with pytest.raises(MinidiffError), lock_run(tmp_path / "new" / "run"):
        (tmp_path / "new" / "run" / "metrics.csv").write_text("")
        raise MinidiffError("the loss is nan")
    assert tree(tmp_path) == {**before, "new": None, "new/run": None, "new/run/metrics.csv": b""}


@pytest.mark.parametrize("name", ["file", "file/run", "x" * 300])
def test_a_folder_that_cannot_be(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(MinidiffError, match="choose a folder that can be written") as caught:
        with lock_run(tmp_path / name):
            raise AssertionError("it was entered")
    assert "\n" not in str(caught.value)
