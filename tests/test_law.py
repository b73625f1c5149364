"""The ledger of the law's runs, the constants fitted to it, and how runs of one width share their beginning."""

import json
from dataclasses import asdict, replace

import fit
import pytest
import runs
import tables
from small_runs import network, pictures, rows

from minidiff.diffusion.schedule import cosine_schedule
from minidiff.training import state
from minidiff.training.config import TrainConfig
from minidiff.training.forecast.distance_law import fit_distance_law
from minidiff.training.forecast.forecast import LAW, Estimate
from minidiff.training.kinds.unet_run import UNetRun

STORED = json.loads(LAW.read_text(encoding="utf-8"))
FITTED, HELD_OUT = fit.read_rows("fitted"), fit.read_rows("held out")


def test_the_ledger_has_the_runs_that_were_planned():
    for found, planned in ((FITTED, runs.FITTED), (HELD_OUT, runs.HELD_OUT)):
        assert sorted(row["name"] for row in found) == sorted(plan.name for plan in planned)
    assert len(FITTED) == 12 and len(HELD_OUT) == 10
    assert all(len(row["losses"]) == row["steps"] for row in FITTED + HELD_OUT)
    assert {row["seed"] for row in FITTED}.isdisjoint(row["seed"] for row in HELD_OUT)


def test_the_constants_of_the_package_are_those_of_the_ledger():
    end, distance = fit.end_points(FITTED), fit.distance_points(FITTED)
    laws = {"curve": fit.PRODUCT(*fit.curve_points(FITTED)), "end": fit.PRODUCT(*end)}
    laws["distance"] = fit_distance_law(end[2], distance[2])
    for name, law in laws.items():
        assert STORED[name]["constants"] == pytest.approx(asdict(law), rel=1e-4)


def test_runs_of_one_width_share_their_first_losses():
    """Up to half of the shorter one's steps; then its learning rate decays, and they differ."""
    for width in runs.WIDTHS:
        losses = {row["steps"]: row["losses"] for row in FITTED if row["width"] == width}
        for shorter, longer in ((200, 400), (400, 800), (800, 1600)):
            half = shorter // 2
            assert losses[shorter][:half] == losses[longer][:half]
            assert losses[shorter][half : half + 20] != losses[longer][half : half + 20]


def test_a_run_that_shares_a_beginning_is_the_run_that_was_trained_alone(tmp_path):
    plan, dataset = runs.Plan(8, 4), pictures()
    config = TrainConfig("data", steps=8, batch_size=2, warmup=1, backend="numpy")

    def new(name, steps):
        return state.new_run(UNetRun, tmp_path / name, replace(config, steps=steps), network(), cosine_schedule())

    longer = new("longer", 8)
    runs.train(longer, dataset, dataset, until=2)
    runs.fork(longer, plan, tmp_path)
    runs.train(longer, dataset, dataset)
    forked = state.open_run(tmp_path / plan.name, UNetRun)
    assert (forked.step, forked.config.steps) == (2, 4)
    runs.train(forked, dataset, dataset)
    alone = new("alone", 4)
    runs.train(alone, dataset, dataset)
    assert rows(forked.folder) == rows(alone.folder) != rows(longer.folder)[: len(rows(alone.folder))]
    assert (forked.optimizer.ema == alone.optimizer.ema).all()


def test_the_tables_of_the_page():
    """A line for each width, law, budget and run, and what misses by more than 15 % is bold."""
    lines = {name: getattr(tables, name)(STORED).splitlines() for name in ("constants", "comparison", "held_out")}
    assert [len(lines[name]) for name in ("constants", "comparison", "held_out")] == [4, 4, 12]
    assert len(tables.measured().splitlines()) == 2 + len(runs.WIDTHS)
    assert tables._outcome(None, 3.0) == ["none", "3", ""]
    assert tables._outcome(Estimate(1.14, 0.1), 1.0)[2] == "+14\N{NO-BREAK SPACE}%"
    assert tables._outcome(Estimate(0.84, 0.1), 1.0)[2] == "**-16\N{NO-BREAK SPACE}%**"
