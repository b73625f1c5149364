"""The ledger of the law's runs, the constants fitted to it, and how runs of one width share their beginning."""

import json
from dataclasses import asdict, replace

import fit
import numpy as np
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
from minidiff.training.log import read_quarter_losses

STORED = json.loads(LAW.read_text(encoding="utf-8"))
FITTED = fit.fitted_rows()
LEDGER = {role: fit.read_rows(role) for role in runs.ROLES}


def test_the_ledger_has_the_runs_that_were_planned():
    for role in ("grid", "varied"):
        assert sorted(row["name"] for row in LEDGER[role]) == sorted(plan.name for plan in runs.ROLES[role])
    assert {row["name"] for row in LEDGER["held out"]} == {plan.name for plan in runs.HELD_OUT}
    assert all(len(row["losses"]) == row["steps"] for role in runs.ROLES for row in LEDGER[role])
    assert len(FITTED) == 12 + 7 + 2  # two longer runs, of which less is known
    assert len(runs.HELD_OUT) == 10
    assert {row["seed"] for row in FITTED}.isdisjoint(plan.seed for plan in runs.HELD_OUT)


def test_the_constants_of_the_package_are_those_of_the_ledger():
    end, measured = fit.end_points(FITTED), fit.distances(FITTED) > 0
    laws = {"curve": fit.POWER(*fit.curve_points(FITTED)), "end": fit.POWER(*end)}
    laws["distance"] = fit_distance_law(end[1][measured], fit.distances(FITTED)[measured])
    for name, law in laws.items():
        assert STORED[name]["constants"] == pytest.approx(asdict(law), rel=1e-3)


def test_the_timesteps_of_the_fit_are_those_of_the_training(tmp_path):
    """The quarters of the noise levels without a loss in the log are those that no drawn timestep lies in."""
    config = TrainConfig("data", steps=6, batch_size=2, backend="numpy", seed=3)
    run = state.new_run(UNetRun, tmp_path / "run", config, network(), cosine_schedule())
    runs.train(run, pictures(), pictures())
    drawn = fit.drawn_parts(3, 6, 2).reshape(6, 4, -1).sum(2)  # (steps, quarters)
    logged = ~np.isnan(read_quarter_losses(run.folder / "metrics.csv")).T
    assert (logged == (drawn > 0)).all() and not logged.all()


def test_the_level_of_a_loss_does_not_depend_on_the_timesteps():
    """Losses that are the timesteps' alone: each mean is another one, the level always the same."""
    profile = np.array([2, 1, 0.8, 0.6, 0.6, 0.7, 0.9, 1.4])
    drawn = fit.drawn_parts(5, 90, 4)
    row = {"seed": 5, "steps": 90, "batch_size": 4, "losses": 0.2 * drawn @ profile}
    np.testing.assert_allclose(fit.loss_profile([row]), profile, rtol=0.15)
    levels = [fit.level(row, first, first + 9, profile) for first in range(0, 90, 9)]
    np.testing.assert_allclose(levels, 0.2)
    assert np.std([np.mean(row["losses"][first : first + 9]) for first in range(0, 90, 9)]) > 0.005


def test_runs_of_one_width_share_their_first_losses():
    """Up to half of the shorter one's steps; then its learning rate decays, and they differ."""
    for width in runs.WIDTHS:
        losses = {row["steps"]: row["losses"] for row in LEDGER["grid"] if row["width"] == width}
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
    assert [len(lines[name]) for name in ("constants", "comparison", "held_out")] == [4, 5, 2 + len(LEDGER["held out"])]
    assert len(tables.measured().splitlines()) == 2 + len(runs.WIDTHS)
    assert tables.hits(STORED).endswith(f"of {len(LEDGER['held out'])} runs.")
    assert tables._outcome(None, 3.0) == ["none", "3", ""]
    assert tables._outcome(Estimate(1.14, 0.1), 1.0)[2] == "+14\N{NO-BREAK SPACE}%"
    assert tables._outcome(Estimate(0.84, 0.1), 1.0)[2] == "**-16\N{NO-BREAK SPACE}%**"
