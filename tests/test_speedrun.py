"""The speedrun's track on a dataset of 120 images: clock, paces, splits, candidates, a run to its score, the ledger."""

import json
import subprocess
import sys
from functools import partial

import candidates
import clock
import numpy as np
import pace
import pytest
import records
import speedrun
import splits
from small_runs import network, refused

from minidiff.data.dataset import blocks
from minidiff.diffusion.continuous import Flow
from minidiff.diffusion.guidance import guided
from minidiff.diffusion.reverse import last_x_t, sample
from minidiff.diffusion.sampler import Sampler
from minidiff.engine.optim import learning_rate
from minidiff.training import loop, recipes
from minidiff.training.config import TrainConfig
from minidiff.training.forecast.forecast import Estimate, Forecast
from minidiff.training.kinds import unet_run
from minidiff.training.log import read_log

SIZES = 60, 30, 30
STEPS_OF_A_BUDGET = 8
PACE = {"minutes": 0.05, "ms": 3000.0, "gflops": [1, 1, 1], "commit": "0123456"}


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
    monkeypatch.setitem(candidates.SAMPLINGS, "ddim-25", candidates.Sampling(Sampler("ddim"), 2))
    for module in (speedrun, pace):
        monkeypatch.setattr(module, "open_splits", partial(splits.open_splits, sizes=SIZES))
    monkeypatch.setattr(speedrun, "pace_of", lambda recipe: PACE)
    monkeypatch.setattr(speedrun, "open_classifier", partial(splits.open_classifier, backend="numpy"))
    monkeypatch.setattr(speedrun, "product_rate", lambda threads: clock.REFERENCE_RATE)
    time, score = Time(1), speedrun.score

    def slow_score(*arguments):
        time.seconds += 1000
        return score(*arguments)

    monkeypatch.setattr(speedrun, "Clock", partial(clock.Clock, now=time))
    monkeypatch.setattr(speedrun, "score", slow_score)
    few = {(speedrun, "IMAGES"): 20, (speedrun, "CHECKPOINTS"): 2, (loop, "IMAGES"): 4}
    few |= {(unet_run, "SHEET_IMAGES"): 1, (unet_run, "SHEET_STEPS"): 1}
    for (module, constant), value in few.items():
        monkeypatch.setattr(module, constant, value)
    ledger = tmp_path / "ledger.jsonl"

    def run(**options):
        usual = {"out": tmp_path / "run", "minutes": 3 / 60, "n": 20, "threads": 1, "ledger": ledger}
        speedrun.main(data, **usual | options)
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
    assert (row["n"], row["sampling"], row["evaluations"]) == (20, "ddim-25", 2)
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


def test_a_run_of_steps_has_the_minutes_of_its_pace(track, tmp_path):
    """Whatever the clock says. It is trained as `minidiff train` does, with a log, and its loss stands in the row."""
    (row,) = track(steps=20)
    assert (row["steps"], row["minutes"], row["pace"]) == (20, 1.0, PACE)
    losses = read_log(tmp_path / "run" / "metrics.csv")[1]
    assert len(losses) == 20 and row["loss"] == pytest.approx(np.mean(losses[-2:]), abs=1e-4)
    assert row["forecast"] is None  # there is none for flow
    again = track(steps=20, sampling="dpmpp-20")[-1]
    assert (again["steps"], again["sampling"]) == (20, "dpmpp-20")
    assert again["samples"] != row["samples"] and again["loss"] == row["loss"]


def test_the_forecast_of_a_run_of_steps_stands_in_its_row(track, monkeypatch):
    monkeypatch.setattr(speedrun, "forecast", lambda run, losses: Forecast(Estimate(len(losses), 0.1), None))
    (row,) = track(steps=20)
    assert row["forecast"] == {"loss": [2, 0.1]}  # from the first tenth


def test_an_interrupted_run_of_steps_equals_one_without(track, monkeypatch, tmp_path):
    (whole,) = track(steps=20)
    original = speedrun.UNetRun.train_batch

    def train_batch(run, batch, rng):
        if run.step == 13:  # the checkpoint of step 10 is whole, the log has three lines more
            raise KeyboardInterrupt
        return original(run, batch, rng)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(speedrun.UNetRun, "train_batch", train_batch)
        track(steps=20, out=tmp_path / "other")
    resumed = track(steps=20, out=tmp_path / "other")[-1]
    assert (resumed["loss"], resumed["samples"]) == (whole["loss"], whole["samples"])


def test_the_pace_is_the_minutes_of_a_step(track, data, tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "THREADS", 1)
    paces = tmp_path / "paces.jsonl"
    pace.main(data, ["small-cpu"], minutes=0.3, paces=paces)
    (row,) = records.read_ledger(paces)
    assert 0.3 <= row["minutes"] * row["steps"] < 0.4 and row["steps"] > 2
    assert row["ms"] == pytest.approx(row["minutes"] * 60_000, rel=1e-3)  # at the reference rate
    assert records.paces(paces).splitlines()[-1].startswith(f"| small-cpu | {row['minutes']} | {row['ms']} | ")


def test_the_newest_pace_of_the_same_network_and_batch_size(tmp_path):
    paces = tmp_path / "paces.jsonl"
    for recipe, minutes in (("flow", 1.0), ("edm", 2.0), ("batch-32", 3.0)):
        records.append(paces, {"recipe": recipe, "minutes": minutes, "ms": 1, "gflops": [1, 1, 1], "commit": ""})
    assert speedrun.pace_of("small-cpu", paces)["minutes"] == 2 and speedrun.pace_of("batch-32", paces)["minutes"] == 3
    refused(speedrun.pace_of, "width-48", paces, match="has no pace of width-48; measure it with pace.py on idle cores")


def test_every_candidate_is_a_configuration_and_differs_from_the_others():
    assert not set(candidates.CANDIDATES) & set(recipes.RECIPES)
    entries = [(c.network(splits.SHAPE, 11), c.choices, c.schedule) for c in candidates.CANDIDATES.values()]
    for entry in entries:
        TrainConfig("data", **entry[1])
        assert entries.count(entry) == 1
    refused(candidates.find, "nothing", match="--recipe nothing: choose from small-cpu, .*, short, flow")


@pytest.mark.parametrize("name", candidates.SAMPLINGS)
def test_every_way_to_sample_is_within_the_rule(name):
    schedule = candidates.find("small-cpu").schedule
    assert 0 < candidates.SAMPLINGS[name].evaluations(schedule) <= candidates.MOST_EVALUATIONS


def test_evaluations_of_guided_steps_and_of_heuns_count_twice():
    settings, schedule = partial(candidates.Sampling, Sampler("ddim"), 10), Flow()
    assert settings().evaluations(schedule) == 10 and settings(2.0).evaluations(schedule) == 20
    # times 1, 0.889, ..., 0.001: sigma = t / (1 - t) is from 0.5 to 2 at four of them
    assert settings(2.0, (0.45, 2.3)).evaluations(schedule) == 14
    assert candidates.Sampling(Sampler("heun"), 10).evaluations(schedule) == 19


def test_guided_samples_are_those_of_the_library():
    def model(x_t, t, cond):
        return x_t * (0.1 * cond[:, None, None, None] - 0.5)

    labels, schedule = np.array([0, 2, 1]), Flow()
    settings = candidates.Sampling(Sampler("euler"), 4, 1.5)
    images = settings.images(model, schedule, labels, 3, np.random.default_rng(0), (2, 2, 1))
    by_library = sample(
        guided(model, 3, 1.5), schedule, (3, 2, 2, 1), np.random.default_rng(0), 4, "euler", cond=labels
    )
    assert (images == last_x_t(by_library)).all()


def test_more_evaluations_than_the_rule_allows(track, monkeypatch):
    monkeypatch.setitem(candidates.SAMPLINGS, "long", candidates.Sampling(Sampler("ddim"), 51))
    refused(lambda: track(sampling="long"), match="--sampling long: evaluates the model 51 times, at most 50 count")
    refused(lambda: track(sampling="none"), match="--sampling none: choose from ddim-25, ")


def test_the_final_images_are_used_once(track, monkeypatch):
    monkeypatch.setattr(speedrun, "commit", lambda: "0123456")
    final, selection = track(which="final")[0], track()[1]
    assert (final["score"], selection["score"]) == ("final", "selection")
    for side in ("samples", "real"):  # against other images
        assert final[side]["frechet"] != selection[side]["frechet"]
    refused(lambda: track(which="final"), match="has the final score of .* already; leave --score final out")
    refused(lambda: track(which="final", n=10), match="--n 10: a final score has 20 samples; leave --n or --score")


def test_a_run_of_another_recipe_is_left_alone(track):
    track()
    refused(lambda: track(seed=1), match="run: is a run of another recipe, seed or dataset; choose another --out")


def test_the_committed_ledger():
    """Every row was scored with the committed classifier, and no final score twice."""
    rows = records.read_ledger()
    finals = [json.dumps([row[key] for key in speedrun.KEYS]) for row in rows]
    assert all(candidates.find(row["recipe"]) and row["sampling"] in candidates.SAMPLINGS for row in rows)
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
    """All rows in their order; of a budget the final scores within it, the best first; the real images last."""
    for seed, which in ((0, "selection"), (1, "final"), (2, "final")):
        rows = track(seed=seed, which=which, out=tmp_path / str(seed))
    best = sorted(rows[1:], key=lambda row: row["samples"]["frechet"])
    ledger = tmp_path / "ledger.jsonl"
    every, within = records.every_row(ledger), records.records(0.05, ledger)
    for text, wanted, column in ((every, rows, 4), (within, best, 3)):
        lines = text.splitlines()
        assert [line.split(" | ")[column] for line in lines[2:-1]] == [str(row["seed"]) for row in wanted]
        assert lines[-1].startswith("| real images |") and len({line.count("|") for line in lines}) == 1
    assert records.records(7, ledger) == within
    assert records.records(0.01, ledger) == "No final score within 0.01 minutes yet."


def test_the_table_of_forecasts(tmp_path):
    """A run once, by its last score; an error above 15 % is bold; a distance without a forecast stands alone."""
    ledger = tmp_path / "ledger.jsonl"
    assert records.forecasts(ledger) == "No run with a forecast yet."
    row = {"recipe": "short", "steps": 20, "seed": 0, "sampling": "ddim-25", "loss": 0.1}
    for frechet, forecast in (
        (50.0, {"loss": [0.12, 0.01], "distance": [55.0, 5.0]}),
        (40.0, {"loss": [0.12, 0.01], "distance": [44.0, 5.0]}),
    ):
        records.append(ledger, row | {"samples": {"frechet": frechet}, "forecast": forecast})
    records.append(ledger, row | {"seed": 1, "samples": {"frechet": 9.0}, "forecast": {"loss": [0.1, 0.01]}})
    records.append(ledger, row | {"seed": 2, "samples": {"frechet": 9.0}, "forecast": None})
    assert records.forecasts(ledger).splitlines()[2:] == [
        "| short | 20 | 0 | 0.120 ± 0.010 | 0.100 | **+20%** | 44.0 ± 5.0 | 40.0 | +10% |",
        "| short | 20 | 1 | 0.100 ± 0.010 | 0.100 | +0% |  | 9.0 |  |",
    ]
