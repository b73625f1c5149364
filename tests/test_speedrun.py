"""The speedrun's track on a dataset of 120 images: clock, splits, a run to its score, the ledger."""

import json
import subprocess
import sys
from functools import partial

import clock
import numpy as np
import pytest
import records
import speedrun
import splits
from small_runs import network, refused

from minidiff.data.dataset import blocks
from minidiff.diffusion.continuous import Flow
from minidiff.engine.optim import learning_rate
from minidiff.training import recipes

SIZES = 60, 30, 30
STEPS_OF_A_BUDGET = 8


class Time:
    """A time that passes at each look, by `step` seconds."""

    def __init__(self, step):
        self.seconds, self.step = 0.0, step

    def __call__(self):
        self.seconds += self.step
        return self.seconds


@pytest.fixture
def data(tmp_path):
    """A folder in CIFAR-10's binary version: noise, twelve images of each class."""
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(5):
        records = rng.integers(0, 256, (24, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(24) % 10
        (folder / f"data_batch_{k + 1}.bin").write_bytes(records.tobytes())
    return str(folder.parent)


@pytest.fixture
def track(data, tmp_path, monkeypatch):
    """track(**options) is a small run of the command; returns the rows of its ledger."""
    small = network(in_channels=3, out_channels=3, sample_size=32, num_class_embeds=11)
    choices = {"steps": 4, "batch_size": 4, "warmup": 2, "backend": "numpy"}
    recipe = recipes.Recipe(choices, lambda shape, num_class_embeds: small, Flow())
    monkeypatch.setitem(recipes.RECIPES, "small-cpu", recipe)
    monkeypatch.setattr(speedrun, "open_splits", partial(splits.open_splits, sizes=SIZES))
    monkeypatch.setattr(speedrun, "open_classifier", partial(splits.open_classifier, backend="numpy"))
    monkeypatch.setattr(speedrun, "product_rate", lambda threads: clock.REFERENCE_RATE)
    time, score = Time(1), speedrun.score

    def slow_score(*arguments):
        time.seconds += 1000
        return score(*arguments)

    monkeypatch.setattr(speedrun, "Clock", partial(clock.Clock, now=time))
    monkeypatch.setattr(speedrun, "score", slow_score)
    for name, value in {"IMAGES": 20, "STEPS": 2}.items():
        monkeypatch.setattr(speedrun, name, value)
    ledger = tmp_path / "ledger.jsonl"

    def run(**options):
        speedrun.main(data, **{"out": tmp_path / "run", "minutes": 3 / 60, "threads": 1, "ledger": ledger} | options)
        return records.read_ledger(ledger)

    return run


def test_a_minute_on_half_a_machine_is_half_a_minute():
    rates = iter([0.5, 0.5, 1.5, 1.5])
    time = Time(0)
    counted = clock.Clock(lambda: next(rates) * clock.REFERENCE_RATE, spent=2.0, now=time)
    time.seconds += 60
    assert counted.minutes == pytest.approx(2.5)
    counted.measure()
    time.seconds += 60
    counted.measure()  # at 0.5 before, at 1.5 after
    assert counted.minutes == pytest.approx(3.5)
    counted.measure(every=1)  # too early
    assert [rate / clock.REFERENCE_RATE for rate in counted.rates] == [0.5, 0.5, 1.5]


def test_measurements_do_not_count():
    time = Time(0)

    def rate():
        time.seconds += 1000
        return clock.REFERENCE_RATE

    counted = clock.Clock(rate, now=time)
    time.seconds += 6
    counted.measure()
    assert counted.minutes == pytest.approx(0.1)


def test_the_rate_is_that_of_a_product(monkeypatch):
    monkeypatch.setattr(clock, "SIDE", 64)
    assert 1e6 < clock.product_rate(1) < 1e13


def test_splits(data):
    parts = splits.open_splits(data, SIZES)
    images = [image.tobytes() for part in parts for block in blocks(part) for image in block]
    assert tuple(map(len, parts)) == SIZES and len(set(images)) == sum(SIZES)
    again = splits.open_splits(data, SIZES)
    assert all((one.labels == other.labels).all() for one, other in zip(parts, again, strict=True))
    refused(splits.open_splits, data, match="is not CIFAR-10's training set, 50000 images of 32x32; give that")


def test_the_learning_rate_follows_the_budget(track, monkeypatch, tmp_path):
    """Every step takes as long, so that the schedule is the one of as many steps, and the run ends with the budget."""
    rates = []
    original = speedrun.UNetRun.train_batch

    def train_batch(run, batch, rng):
        rates.append(run.optimizer.lr)
        return original(run, batch, rng)

    monkeypatch.setattr(speedrun.UNetRun, "train_batch", train_batch)
    looks = 4  # at the time in each step of `train`
    seconds = STEPS_OF_A_BUDGET * looks
    (row,) = track(minutes=seconds / 60)
    assert abs(row["steps"] - STEPS_OF_A_BUDGET) <= 1 and row["spent"] == pytest.approx(seconds / 60, abs=0.06)
    assert rates[0] < rates[1] and rates[-1] < 0.3 * max(rates) and max(rates) <= 1e-3
    assert rates[0] == learning_rate(1e-3, 1, 100, 2)


def test_a_run_to_its_score(track):
    (row,) = track()
    assert row["score"] == "selection" and row["steps"] == 1 and row["recipe"] == "small-cpu"
    for side in ("samples", "real"):
        assert set(row[side]) == {"frechet", "kid", "precision", "recall", "agreement", "nearest"}
        assert all(np.isfinite(value) for value in row[side].values()) and row[side]["frechet"] > 0


def test_a_finished_run_is_scored_again_and_not_trained(track):
    first, second = (track(seed=0)[-1] for _ in range(2))
    assert first["steps"] == second["steps"] == 1 and first["samples"] == second["samples"]


def test_an_interrupted_run_continues_from_its_checkpoint(track, monkeypatch, tmp_path):
    """With the minutes that it had spent, and the steps that it had done."""
    original, steps = speedrun.UNetRun.train_batch, []

    def train_batch(run, batch, rng):
        steps.append(run.step + 1)
        if steps == [1, 2, 3, 4]:
            raise KeyboardInterrupt
        return original(run, batch, rng)

    monkeypatch.setattr(speedrun, "SAVE_EVERY", -1.0)
    monkeypatch.setattr(speedrun.UNetRun, "train_batch", train_batch)
    with pytest.raises(KeyboardInterrupt):
        track(minutes=0.6)
    spent = json.loads((tmp_path / "run" / "clock.json").read_text())["minutes"]
    (row,) = track(minutes=0.6)
    assert 0 < spent < 0.6 <= row["spent"] < 0.6 + 0.2
    assert steps[4:] == list(range(4, row["steps"] + 1)) and row["steps"] <= 9  # of 36 seconds, at least four each


def test_the_final_images_are_used_once(track, monkeypatch):
    monkeypatch.setattr(speedrun, "commit", lambda: "0123456")
    final, selection = track(which="final")[0], track()[1]
    assert (final["score"], selection["score"]) == ("final", "selection")
    for side in ("samples", "real"):  # against other images
        assert final[side]["frechet"] != selection[side]["frechet"]
    refused(lambda: track(which="final"), match="has the final score of .* already; leave --score final out")


def test_a_run_of_another_recipe_is_left_alone(track):
    track()
    refused(lambda: track(seed=1), match="run: is a run of another recipe, seed or dataset; choose another --out")


def test_the_committed_ledger():
    """Every row was scored with the committed classifier, and no final score twice."""
    rows = records.read_ledger()
    finals = [json.dumps([row[key] for key in ("recipe", "minutes", "seed", "commit")]) for row in rows]
    finals = [key for key, row in zip(finals, rows, strict=True) if row["score"] == "final"]
    assert len(set(finals)) == len(finals)
    digest = speedrun.sha256(splits.WEIGHTS.read_bytes()).hexdigest()[:16]
    assert {row["classifier"] for row in rows} <= {digest}


def test_an_error_is_one_line(data, tmp_path):
    command = [sys.executable, speedrun.__file__, data, "--out", str(tmp_path / "run"), "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"minidiff: {data}: is not CIFAR-10's") and done.stderr.count("\n") == 1


def test_tables(track, tmp_path):
    """All rows in their order; of a track its final scores, the best first; the real images last."""
    for seed, which in ((0, "selection"), (1, "final"), (2, "final")):
        rows = track(seed=seed, which=which, out=tmp_path / str(seed))
    best = sorted(rows[1:], key=lambda row: row["samples"]["frechet"])
    ledger = tmp_path / "ledger.jsonl"
    for text, wanted in ((records.every_row(ledger), rows), (records.records(0.05, ledger), best)):
        lines = text.splitlines()
        assert [line.split(" | ")[1] for line in lines[2:-1]] == [str(row["seed"]) for row in wanted]
        assert lines[-1].startswith("| real images |") and len({line.count("|") for line in lines}) == 1
    assert records.records(7, ledger) == "No final score of 7 minutes yet."
