"""The cost model of docs/scaling.md finds the constants that times were made with; what it says is right by hand."""

from dataclasses import replace

import cost_figures
import cost_model
import many_ranks
import measure_scaling
import numpy as np
import pytest
from cost_model import GIGABIT, Costs
from small_runs import network

SIDES = [dict(processes=p, threads=t, reduction=r) for p, t, r in ((1, 1, "exact"), (1, 2, "exact"), (2, 1, "exact"))]
ONE, BOTH = Costs(0.03, 0.04, 4 * 9e6, 0.6, B=2e9, L=5e-6), Costs(0.02, 0.021, 4 * 9e6, 0.6)
# rank 1 is ahead in forward, and waits for rank 0
TIMELINE = [
    [["forward", 0, 0.0, 0.4], ["backward", 0, 0.4, 1.0], ["scatter", 1, 0.6, 0.8], ["scatter", 0, 1.0, 1.2],
     ["gather", 0, 1.2, 1.3], ["wait", 0, 1.0, 1.3], ["update", 0, 1.3, 1.3]],
    [["wait", 0, 0.0, 0.1], ["forward", 1, 0.1, 0.4], ["backward", 1, 0.4, 0.9], ["scatter", 1, 0.5, 0.8],
     ["scatter", 0, 0.9, 1.2], ["gather", 0, 1.2, 1.3], ["wait", 0, 0.9, 1.3], ["update", 0, 1.3, 1.5]],
]  # fmt: skip


@pytest.fixture
def found():
    """A measurement whose times are those of the model, and of rounds that took longer."""
    h = (0.6 / 1.0 + 0.5 / 1.0) / 2
    here = replace(ONE, c=1.25, h=h)
    steps = [
        {"network": name, "batch": N, "seconds": [[s, 1.5 * s, 1.2 * s] for s in (
            f * ONE.step(1, N), f * BOTH.step(1, N), f * here.step(2, N))]}
        for name, f in (("U-Net", 1), ("demo's network", 0.1)) for N in (8, 16, 32, 64)
    ]  # fmt: skip
    sizes = [4096, 2**20, 36_000_000]
    networks = {"U-Net": (9e6, 2e9), "demo's network": (1e6, 1e8), "Stable Diffusion 1.x": (860e6, 8e11)}
    return {
        "machine": {"processor": "made up"},
        "MPI": "Open MPI v5",
        "seconds": 90.0,
        "networks": {name: {"parameters": int(p), "flop": int(flop)} for name, (p, flop) in networks.items()},
        "sides": SIDES,
        "steps": steps,
        "exchange": {"bytes": sizes, "seconds": [2 * ONE.L + size / ONE.B for size in sizes]},
        "timeline": {"side": 2, "ranks": TIMELINE},
    }


def test_the_constants_are_found(found):
    here = cost_model.on_this_machine(found, "U-Net")
    for name, value in {"a": 0.03, "b": 0.04, "G": 3.6e7, "h": 0.55, "B": 2e9, "L": 5e-6}.items():
        assert getattr(here, name) == pytest.approx(value, rel=1e-6), name
    assert here.c == pytest.approx(1.25, abs=0.0011)  # it is searched for in steps of 0.002
    both = cost_model.alone(found, "U-Net", 2)
    assert (both.a, both.b) == pytest.approx((0.02, 0.021))


def test_a_line_has_no_negative_part():
    assert cost_model.line(np.array([1.0, 2.0]), np.array([1.0, 3.0]))[0] == 0


def test_a_step_by_hand():
    """Of 100 images on 4 machines, 1 GB of gradient at 10 Gbit/s, 238 buckets."""
    costs = Costs(a=0.5, b=0.02, G=1e9, h=0.6, B=10 * GIGABIT, L=1e-5)
    exchange = 2 * 3 / 4 * 1e9 / 1.25e9 + 2 * 2 * 238 * 1e-5
    assert costs.exchange(4) == pytest.approx(exchange) and costs.exchange(1) == 0
    assert costs.step(4, 100) == pytest.approx(1 + exchange - 0.6)
    assert costs.efficiency(4, 100) == pytest.approx(1 / (0.4 + exchange))
    assert costs.speedup(4, 100) == pytest.approx(2.5 / (0.4 + exchange))
    enough = costs.hiding_batch(4)
    tail = costs.exchange(4, 4 * 2**20)
    assert costs.exposed(4, 4 * enough) == pytest.approx(tail)
    assert costs.exposed(4, 4 * (enough - 1)) == pytest.approx(max(tail, 0.6 * 0.02))


def test_the_time_line(found):
    """Rank 0 exchanges for 0.5 s, 0.2 of it under backward; rank 1 for 0.7, 0.3 of it. They wait for 0.3 and 0.4 s."""
    assert cost_model.hidden_share(found) == pytest.approx(0.5 / 1.2)
    assert cost_model.waited(found) == pytest.approx(0.4)
    events = [["a", 0, 1, 2], ["a", 1, 1.5, 3], ["b", 0, 0, 9], ["a", 2, 4, 5]]
    assert cost_model.intervals(events, "a") == [(1, 3), (4, 5)]


def test_what_the_page_says(found):
    assert cost_figures.machine(found) == "processor made up, Open MPI v5\nmeasured in 1.5 minutes"
    ranks, threads = (min(found["steps"][3]["seconds"][side]) for side in (2, 1))
    assert f"takes {ranks / threads - 1:.1%} more" in cost_figures.steps_sentence(found, "U-Net")
    assert f"| 64 | {1e3 * ONE.step(1, 64):,.0f} / " in cost_figures.steps_table(found, "U-Net")
    assert "B = 2 GB/s, L = 5 µs" in cost_figures.fit_sentence(found)
    for table in ("fit_table", "strong_table", "weak_table", "hiding_table", "remedies_table"):
        head, _, *rows = getattr(cost_figures, table)(found).splitlines()
        assert rows and all(row.count("|") == head.count("|") and "nan" not in row for row in rows), table
    assert "5 x 3.44 = 17.2 GB" in cost_figures.memory_sentence(found)
    assert "42% is under backward" in cost_figures.timeline_sentence(found)


@pytest.mark.parametrize("figure", ["steps_figure", "timeline_figure", "efficiency_figure"])
def test_the_figures(found, figure):
    import matplotlib.pyplot as plt

    arguments = [found, "U-Net"] if figure == "steps_figure" else [found]
    fig = getattr(cost_figures, figure)(*arguments)
    fig.canvas.draw()
    plt.close(fig)


def test_the_sides_of_some_cores():
    assert [tuple(side) for side in measure_scaling.sides(1)] == [(1, 1, "exact")]
    assert [tuple(side)[:2] for side in measure_scaling.sides(4)] == [(1, 1), (1, 4), (2, 2), (4, 1), (4, 1)]


@pytest.mark.skipif(not many_ranks.MPIEXEC, reason="needs mpiexec: pip install minidiff[mpi]")
def test_a_measurement(monkeypatch):
    """Of a tiny network, a round: one time for each side, and the time line of both ranks."""
    for name, value in many_ranks.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NUMBA_NUM_THREADS", "2")
    monkeypatch.setattr(measure_scaling, "TURN", 0)
    monkeypatch.setattr(measure_scaling, "EXCHANGED", (16, 64))
    found = measure_scaling.measure({"tiny": network()}, (2,), 2, "numpy", rounds=1)
    assert len(found["sides"]) == 4 and [len(times) for times in found["steps"][0]["seconds"]] == [1] * 4
    assert len(found["exchange"]["seconds"]) == 2 and found["MPI"]
    for events in found["timeline"]["ranks"]:
        assert {"forward", "backward", "scatter", "gather", "wait", "update"} == {name for name, *_ in events}
        assert all(0 <= start <= end for *_, start, end in events)


@pytest.mark.skipif(not many_ranks.MPIEXEC, reason="needs mpiexec: pip install minidiff[mpi]")
def test_a_process_that_ends_is_named(monkeypatch):
    from minidiff.errors import MinidiffError

    monkeypatch.setattr(measure_scaling, "RANK", measure_scaling.RANK.with_name("missing.py"))
    with (
        pytest.raises(MinidiffError, match=r"a measured process has ended: .*missing\.py"),
        measure_scaling.started(measure_scaling.Side(1, 1), "numpy"),
    ):
        pass
