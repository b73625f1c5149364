"""The Markdown table of the bench's JSON."""

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "results" / "table.py"


def test_best_rounds_and_ratios_to_ours():
    rows = [
        {"family": "step", "case": "U-Net", "seconds": {"ours": [0.9, 0.8], "torch": [2.0]}},
        {"family": "network", "case": "batch 1", "seconds": {"ours": [0.01], "OpenVINO": [0.015]}},
    ]
    assert runpy.run_path(str(SCRIPT))["table"](rows).splitlines() == [
        "| work | ours | torch | OpenVINO |",
        "|---|---|---|---|",
        "| step: U-Net | 800 | 2000 (2.50) | – |",
        "| network: batch 1 | 10 | – | 15 (1.50) |",
    ]
