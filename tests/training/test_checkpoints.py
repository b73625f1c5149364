"""Which states are kept, what is done when the newest is damaged, and which is the best."""

import dataclasses
import json
import math
import os
import shutil

import numpy as np
import pytest
from small_runs import contents, go_on, kept_states, new_run, pictures, read_safetensors, refused, reopen, tree, unet_of

from minidiff.diffusion.loss import min_snr_weight, training_loss
from minidiff.errors import MinidiffError, MinidiffWarning
from minidiff.formats.run_state import best_file, state_file, step_file
from minidiff.formats.run_state import kept_states as states
from minidiff.training import loop as probing
from minidiff.training import state
from minidiff.training.checkpoints import link, read_losses
from minidiff.training.loop import validation_loss

STEPS = 12


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped, with checkpoints at 3, 6, 9 and 12; not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    go_on(new_run(folder, STEPS), 3)
    return folder


class Lost(Exception):
    """The process ended, and with it all that was in memory."""


@pytest.fixture
def stopped(tmp_path):
    """A run that lost what came after its checkpoint of step 9."""
    folder = tmp_path / "run"

    def lose(stats):
        if stats.step == 10:
            raise Lost

    with pytest.raises(Lost):
        go_on(new_run(folder, STEPS), 3, on_step=lose)
    return folder


def step_of(path):
    return int(read_safetensors(path)[1]["step"])


def damage(path, copies=False):
    """Truncate it, as a disk does: by all its names; or, of a folder that was copied, by this one alone."""
    data = path.read_bytes()[:-100]
    if copies:
        path.unlink()
    path.write_bytes(data)


# The last few


def test_the_last_two_are_kept_and_the_newest_has_two_names(whole):
    assert states(whole) == {step: step_file(whole, step) for step in (9, 12)}
    assert all(step_of(path) == step for step, path in states(whole).items())
    assert state_file(whole).samefile(step_file(whole, 12)) and step_of(state_file(whole)) == 12


@pytest.mark.parametrize("keep, steps", [(1, [12]), (3, [6, 9, 12]), (100, [0, 3, 6, 9, 12])])
def test_as_many_are_kept_as_one_likes(tmp_path, keep, steps):
    go_on(new_run(tmp_path, STEPS), 3, keep=keep)
    assert list(states(tmp_path)) == steps


def test_other_names_are_left_alone(stopped):
    names = ("state-old.safetensors", "state-1.safetensors", "state-000003.bak")
    others = [stopped / "training" / name for name in names]
    for path in others:
        path.write_text("mine")
    go_on(reopen(stopped), 3)
    assert all(path.read_text() == "mine" for path in others) and list(states(stopped)) == [9, 12]


def test_without_links_they_are_copies(tmp_path, monkeypatch, whole):
    def none(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    go_on(new_run(tmp_path / "run", STEPS), 3)
    assert not state_file(tmp_path / "run").samefile(step_file(tmp_path / "run", 12))
    assert contents(tmp_path / "run") == contents(whole) and kept_states(tmp_path / "run") == kept_states(whole)


def test_a_run_that_never_began_is_no_run(tmp_path):
    """Killed between the two names of its first state, it is begun again; of any other there is something to lose."""
    new_run(tmp_path)
    shutil.rmtree(tmp_path / "unet"), shutil.rmtree(tmp_path / "scheduler"), (tmp_path / "model_index.json").unlink()
    state_file(tmp_path).unlink()
    new_run(tmp_path)
    go_on(reopen(tmp_path), stop_at=1)
    state_file(tmp_path).unlink()
    with pytest.raises(MinidiffError, match="holds a run already; continue it with --resume"):
        new_run(tmp_path)


# The newest is damaged


@pytest.mark.parametrize("copies, step", [(False, 6), (True, 9)])
def test_a_truncated_state_falls_back_to_the_one_before(stopped, whole, copies, step):
    """And the run is what it would have been. In a folder that was copied its other name is another file, and whole."""
    if copies:
        shutil.move(stopped, stopped.with_name("from"))
        shutil.copytree(stopped.with_name("from"), stopped)
    damage(state_file(stopped), copies)
    before = tree(stopped)
    other = rf"state-00000{step}\.safetensors"
    match = rf"training/state.safetensors: damaged or not safetensors .* Going back to step {step}, {other}\.$"
    with pytest.warns(MinidiffWarning, match=match):
        run = state.open_run(stopped)
    assert run.step == step and tree(stopped) == before  # opening changes nothing
    state.roll_back(run)
    assert step_of(state_file(stopped)) == step and max(states(stopped)) == step
    assert list(read_losses(stopped)) == list(range(3, step + 1, 3))
    go_on(reopen(stopped), 3)
    assert contents(stopped) == contents(whole) and kept_states(stopped) == kept_states(whole)


def test_a_state_that_is_gone_falls_back_too(stopped):
    state_file(stopped).unlink()
    with pytest.warns(MinidiffWarning, match="Going back to step 9"):
        assert reopen(stopped).step == 9
    assert step_of(state_file(stopped)) == 9


def test_if_none_is_whole_it_says_so(stopped):
    for path in (state_file(stopped), *states(stopped).values()):
        damage(path, copies=True)
    with pytest.warns(MinidiffWarning, match="Going back to step 9, best.safetensors"):
        assert state.open_run(stopped).step == 9
    damage(best_file(stopped))
    before = tree(stopped)
    with pytest.raises(MinidiffError, match="training/state.safetensors: damaged or not safetensors") as caught:
        state.open_run(stopped)
    assert tree(stopped) == before
    tried = [step_file(stopped, 9), step_file(stopped, 6), best_file(stopped)]
    assert f"no other state is whole: {', '.join(map(str, tried))}; restore one of these files" in str(caught.value)


def test_a_later_future_is_forgotten(tmp_path):
    """Gone back to step 3, it may go on another way; nothing of the first one stays."""
    go_on(new_run(tmp_path, STEPS), 3, keep=100)
    for step in (12, 9, 6):
        damage(step_file(tmp_path, step))
    with pytest.warns(MinidiffWarning, match="Going back to step 3"):
        run = reopen(tmp_path)
    assert run.step == 3 and list(states(tmp_path)) == [0, 3] and list(read_losses(tmp_path)) == [3]
    assert step_of(best_file(tmp_path)) == step_of(state_file(tmp_path)) == 3


# The best


def best_by_hand(folder):
    losses = read_losses(folder)
    return min(losses, key=lambda step: losses[step])


def test_the_best_has_the_lowest_loss(whole):
    losses = read_losses(whole)
    assert list(losses) == [3, 6, 9, 12]
    assert step_of(best_file(whole)) == best_by_hand(whole) == 12  # it still learns


@pytest.mark.parametrize(
    "losses, best",
    [
        ([0.5, 0.3, 0.4, 0.6], 6), ([0.3, 0.3, 0.3, 0.3], 3), ([0.9, 0.8, 0.7, 0.6], 12),
        ([math.nan, 0.9, math.nan, 1.0], 6), ([math.nan] * 4, 3), ([0.1, math.inf, 0.2, -math.inf], 12),
    ],
)  # fmt: skip
def test_the_best_stays_when_its_step_is_long_gone(tmp_path, monkeypatch, losses, best):
    values = iter(losses)
    monkeypatch.setattr("minidiff.training.loop.validation_loss", lambda run, dataset: next(values))
    go_on(new_run(tmp_path, STEPS), 3, keep=1)
    assert step_of(best_file(tmp_path)) == best and list(states(tmp_path)) == [12]
    assert state.open_best(tmp_path).step == best
    np.testing.assert_array_equal(list(read_losses(tmp_path).values()), losses)


def test_the_best_before_is_given_up_last(tmp_path, monkeypatch):
    """Lost after its first link, a checkpoint that is the best yet is the newest, and the best once it is settled."""
    values, done = iter([0.2, 0.3, 0.3, 0.1]), []

    def lost(source, target):
        if source.name in done:
            raise Lost
        link(source, target)
        if source == step_file(tmp_path, 12):
            done.append(source.name)

    monkeypatch.setattr("minidiff.training.loop.validation_loss", lambda run, dataset: next(values))
    with monkeypatch.context() as patched, pytest.raises(Lost):
        patched.setattr("minidiff.training.checkpoints.link", lost)
        go_on(new_run(tmp_path, STEPS), 3, keep=1)
    assert step_of(best_file(tmp_path)) == 3
    reopen(tmp_path)
    assert step_of(best_file(tmp_path)) == best_by_hand(tmp_path) == 12


def test_a_best_that_is_damaged_or_of_a_forgotten_future(stopped, monkeypatch):
    damage(best_file(stopped), copies=True)
    reopen(stopped)
    assert step_of(best_file(stopped)) == 9
    best_file(stopped).unlink()
    (stopped / "checkpoints.csv").write_text("step,loss\n3,0.5\n6,0.1\n9,0.2\n12,0.01\n15,")
    reopen(stopped)
    assert step_of(best_file(stopped)) == 6 and list(read_losses(stopped)) == [3, 6, 9]
    (stopped / "checkpoints.csv").unlink()
    reopen(stopped)
    assert not best_file(stopped).exists()
    with pytest.raises(MinidiffError, match="holds no training/best.safetensors"):
        state.open_best(stopped)


def test_what_is_saved_in_haste_is_not_measured(tmp_path):
    """Ctrl-C asks for an end. The state is kept, the best is another."""
    go_on(new_run(tmp_path, STEPS), 3, stop_at=7)
    assert list(read_losses(tmp_path)) == [3, 6] and list(states(tmp_path)) == [6, 7]
    assert step_of(best_file(tmp_path)) == 6


# What it is measured by


def test_the_probe_is_the_loss_of_the_average(tmp_path):
    """On the whole of a small set, at times and noise of its own, without dropout; twice the same, nothing changed."""
    run = new_run(tmp_path, 4, dropout=0.5)
    go_on(run)
    own, average, dataset = run.optimizer.p.copy(), run.optimizer.ema.copy(), pictures()
    measured = validation_loss(run, dataset)
    assert measured == validation_loss(run, dataset) == read_losses(tmp_path)[4]
    np.testing.assert_array_equal(run.optimizer.p, own)

    twin = unet_of(run.unet.config)
    for p, a in zip(twin.parameters(), run.optimizer.split(average), strict=True):
        p.data[...] = a
    x0 = dataset.take(np.arange(10)).astype(np.float32) / np.float32(127.5) - 1
    rng = np.random.default_rng([run.config.seed, 0, 5])
    t, eps = rng.integers(0, 30, 10), rng.standard_normal(x0.shape, dtype=np.float32)
    want = float(training_loss(twin, run.schedule, x0, t, eps).numpy())
    assert measured == pytest.approx(want, rel=1e-6)  # in parts of four: another order of 160 additions, 2^-20
    assert measured != pytest.approx(float(training_loss(run.unet, run.schedule, x0, t, eps).numpy()), rel=1e-4)


def test_the_probe_takes_pictures_from_all_of_the_set(tmp_path, monkeypatch):
    monkeypatch.setattr(probing, "IMAGES", 5)
    run, dataset, taken = new_run(tmp_path), pictures(41), []
    validation_loss(run, dataclasses.replace(dataset, take=lambda i: taken.append(i) or dataset.take(i)))
    assert taken[0].tolist() == [0, 10, 20, 30, 40]


def test_the_probe_asks_by_class_and_weighs_as_the_run(tmp_path, monkeypatch):
    run = new_run(tmp_path, num_class_embeds=3)
    dataset = dataclasses.replace(pictures(), labels=np.arange(10) % 2)
    config = dataclasses.replace(run.config, classes=("a", "b"), min_snr=5.0, batch_size=10)
    asked = []

    def loss(model, schedule, x0, t, eps, cond, weight):
        asked.append((cond.tolist(), weight))
        np.testing.assert_array_equal(weight, min_snr_weight(schedule, t, 5.0))
        return training_loss(model, schedule, x0, t, eps, cond, weight=weight)

    monkeypatch.setattr("minidiff.training.kinds.unet_run.training_loss", loss)
    assert math.isfinite(validation_loss(dataclasses.replace(run, config=config), dataset))
    assert asked[0][0] == [0, 1] * 5


def test_the_probe_measures_what_it_is_given(tmp_path):
    other = pictures(shape=(4, 4, 1), n=3)
    go_on(run := new_run(tmp_path, 4), validation=other)
    assert read_losses(tmp_path)[4] == validation_loss(run, other) != validation_loss(run, pictures())


def test_the_state_says_how_many_steps_were_skipped(stopped):
    tensors, metadata = read_safetensors(state_file(stopped))
    assert metadata["skipped"] == "0" and json.loads(metadata["config"])["accumulate"] == 1


def free(monkeypatch, free, total=10**12):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (total, total - free, free))


def test_a_disk_without_room_for_checkpoints_is_told_before_anything_is_written(tmp_path, monkeypatch):
    size = 16 * new_run(tmp_path / "other").optimizer.p.size  # four numbers of four bytes for each weight
    free(monkeypatch, 3 * size - 1)
    match = (
        "run: its checkpoints take 0.0 GB of disk, 0.0 GB are free; free space, choose another --out, or give a smaller"
    )
    refused(new_run, tmp_path / "run", match=match)
    assert not (tmp_path / "run").exists()
    free(monkeypatch, 3 * size - 1, total=0)
    new_run(tmp_path / "unknown")
    free(monkeypatch, 3 * size)
    run = new_run(tmp_path / "run")
    free(monkeypatch, 4 * size - state_file(run.folder).stat().st_size)  # that of step 0, which has two names
    assert state.check_disk_space(run, 2) == 4 * size
    refused(state.check_disk_space, run, 3, match=match)
