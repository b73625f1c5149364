"""Two programs timed in turn, A B A B, in one process: the only fair way on a machine that is never quite idle."""

import statistics
import time


def in_turn(benchmark, ours, theirs, rounds: int) -> None:
    """Time `ours` by pytest-benchmark and `theirs` between its rounds; print and keep both and their ratios."""
    rival = []

    def setup():
        start = time.perf_counter()
        theirs()
        rival.append(time.perf_counter() - start)

    benchmark.pedantic(ours, setup=setup, rounds=rounds, warmup_rounds=2)
    ours_min, ours_median = benchmark.stats.stats.min, benchmark.stats.stats.median
    rival_min, rival_median = min(rival[2:]), statistics.median(rival[2:])
    benchmark.extra_info |= {
        "rival_min": rival_min,
        "rival_median": rival_median,
        "ratio_of_minima": rival_min / ours_min,
        "ratio_of_medians": rival_median / ours_median,
    }
    print(
        f"\nours {1e3 * ours_min:.1f} | {1e3 * ours_median:.1f} ms, rival {1e3 * rival_min:.1f} | "
        f"{1e3 * rival_median:.1f} ms (min | median): {rival_min / ours_min:.2f}x, {rival_median / ours_median:.2f}x"
    )
