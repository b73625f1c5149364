"""Benchmark results as tables and as JSON."""

import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from minidiff.bench.cases import Case
from minidiff.bench.measure import OURS_BFLOAT16, Row
from minidiff.files import check_file, followed, replace_file

TUNED_MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1000000000:glibc.malloc.trim_threshold=10000000000"
UNITS = {"FLOP": "GFLOP/s", "B": "GB/s"}
PREFIXES = ("GOMP_", "OMP_", "OPENBLAS_", "MKL_")  # of environment variables that configure OpenMP and BLAS


def surroundings() -> dict[str, str]:
    """The environment variables that affect timing: of glibc's allocator, OpenMP and BLAS."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    allocator = f"tuned: {tunables}" if tunables == TUNED_MALLOC else tunables or "default"
    return {"allocator": allocator} | {k: v for k, v in sorted(os.environ.items()) if k.startswith(PREFIXES)}


def head(facts: Mapping[str, Any], peaks: Mapping[str, float]) -> Table:
    """Table of the machine, library versions and peak rates."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rates = ", ".join(f"{rate / 1e9:.0f} {UNITS[unit]}" for unit, rate in peaks.items())
    for name, value in {**facts, "peak, measured": rates}.items():
        table.add_row(name, str(value))
    return table


def follow(cases: Sequence[Case], measured: Callable[[Case], Row], peaks: Mapping[str, float], bar) -> Iterator[Row]:
    """Measure the cases with a progress bar; print the table of each family when it is complete or interrupted."""
    task = bar.add_task("measuring", total=len(cases), note="")
    for _, family in groupby(cases, key=lambda case: case.family):
        rows = []
        try:
            for case in family:
                bar.update(task, note=str(case))
                rows.append(measured(case))
                bar.advance(task)
                yield rows[-1]
        finally:
            if rows:
                bar.console.print("", table(rows, peaks), sep="\n")


def table(rows: Sequence[Row], peaks: Mapping[str, float]) -> Table:
    """The cases of one family. Times, ratio and rate are those of the best rounds; "median" is the ratio of medians."""
    sides = [side for side in rows[0].seconds if side != "ours"]
    table = Table(title=f"{rows[0].case.family}, ms", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for column in (
        "ours",
        *sides,
        "ratio",
        "median",
        UNITS[rows[0].case.unit],
        "peak",
        *(("error", f"{_error_mode(rows[0])}'s") if rows[0].errors else ()),
        *(("bfloat16's",) if _has_bfloat16(rows[0]) else ()),
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        times = [_milliseconds(min(row.seconds[side])) for side in ("ours", *sides)]
        of_peak = row.rate / peaks[row.case.unit]
        ratios = [f"{row.ratio(statistic):.2f}" for statistic in (min, statistics.median)]
        table.add_row(row.case.label, *times, *ratios, f"{row.rate / 1e9:.0f}", f"{of_peak:.0%}", *_errors(row))
    table.width = Console(width=1000).measure(table).maximum  # a narrow window must not truncate numbers
    return table


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"


def _error_mode(row: Row) -> str:
    """The rival's mode whose errors are shown beside ours."""
    return next((side for side in ("channels_last", "float32") if side in row.seconds), row.rival)


def _errors(row: Row) -> tuple[Text, ...]:
    """One line per result: ours, the rival's and our bfloat16's, a dash for what is not computed.

    Empty if no errors were computed.
    """
    if not row.errors:
        return ()
    ours = (f"{result} {by_side['ours']:.1e}" for result, by_side in row.errors.items())
    mode = _error_mode(row)
    others = [mode, OURS_BFLOAT16] if _has_bfloat16(row) else [mode]
    lines = ([f"{e[side]:.1e}" if side in e else "–" for e in row.errors.values()] for side in others)
    return Text("\n".join(ours)), *(Text("\n".join(of_side)) for of_side in lines)


def _has_bfloat16(row: Row) -> bool:
    """Whether our bfloat16 is measured too, and its errors."""
    return any(OURS_BFLOAT16 in by_side for by_side in row.errors.values())


def check_place(place: str | None) -> None:
    """Raises MinidiffError, before minutes of measuring, if the file cannot be written; None and "-" are accepted."""
    if place not in (None, "-"):
        check_file(place)


def write(place: str | None, numbers: dict) -> None:
    """The numbers as JSON to a file, to stdout ("-") or nowhere (None)."""
    text = json.dumps(numbers, indent=1)
    if place == "-":
        print(text)
    elif place is not None:
        replace_file(followed(place), lambda part: part.write_text(text + "\n"))


def as_dict(rows: Sequence[Row], facts: Mapping[str, Any], peaks: Mapping[str, float], finished: bool) -> dict:
    """All measurements, for json.dump: seconds of each round, errors by result and side."""
    return {
        "machine": dict(facts),
        "peaks": {f"{unit}/s": rate for unit, rate in peaks.items()},
        "finished": finished,
        "rows": [
            {
                "family": row.case.family,
                "case": row.case.label,
                "seconds": row.seconds,
                "rival": row.rival,
                "ratio_of_minima": row.ratio(min),
                "ratio_of_medians": row.ratio(statistics.median),
                "unit": f"{row.case.unit}/s",
                "rate": row.rate,
                "share_of_peak": row.rate / peaks[row.case.unit],
                "errors": row.errors,
            }
            for row in rows
        ],
    }
