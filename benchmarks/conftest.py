"""The cases of `minidiff bench` under pytest-benchmark, which stores results and compares them over time."""

import statistics
import time

import pytest

from minidiff.bench import measure, rivals
from minidiff.bench.cases import choose
from minidiff.engine.backend import get_backend


def pytest_generate_tests(metafunc):
    """Each file is a family: test_conv.py has the cases of conv."""
    metafunc.parametrize("case", choose([metafunc.module.FAMILY]), ids=lambda case: case.label)


@pytest.fixture(scope="session")
def torch():
    return rivals.open_rival(["torch"], threads=None)


@pytest.fixture
def in_turn(benchmark, torch):
    """in_turn(case): torch is timed between our rounds and reported in `extra_info`."""

    def in_turn(case):
        sides = dict(measure.sides(case, torch, get_backend("numba")))
        ours = sides.pop("ours")
        seconds = {name: [] for name in sides}

        def time_torch():
            for name, side in sides.items():
                start = time.perf_counter()
                side.run()
                seconds[name].append(time.perf_counter() - start)

        benchmark.pedantic(ours.run, setup=time_torch, rounds=measure.MIN_ROUNDS, warmup_rounds=1)
        times = {"ours": benchmark.stats.stats.data, **{name: times[1:] for name, times in seconds.items()}}
        row = measure.Row(case, times, {})
        ratios = {"rival": row.rival, "of minima": row.ratio(min), "of medians": row.ratio(statistics.median)}
        benchmark.extra_info |= {"seconds": times, **ratios}
        print(f"\n{case}: {ratios['of minima']:.2f} | {ratios['of medians']:.2f} times as fast as torch {row.rival}")

    return in_turn
