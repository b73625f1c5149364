"""The command that writes a report of runs."""

from pathlib import Path
from typing import Annotated

import typer

from minidiff import machine
from minidiff.cli.options import PLACE, Threads
from minidiff.errors import MinidiffError
from minidiff.evaluation.run_report import write_run_report
from minidiff.files import check_file
from minidiff.terminal import console


def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Runs of minidiff train, train-vae and the like.")],
    out: Annotated[Path, typer.Option(help="Output page.", **PLACE)] = Path("report.html"),
    threads: Threads = None,
) -> None:
    """Report of one run or several, as one page that a browser opens.

    It has settings, with the differences between the runs marked; loss curves with zoom and logarithmic axes; the loss
    by noise level; the sheets of samples of all checkpoints and the denoising of a few samples, over sliders; the
    evaluations that lie in folders of the run (minidiff evaluate RUN --out RUN/evaluation); versions and processor;
    and the command that repeats the run.
    """
    machine.use_threads(threads, "numba")
    if out.suffix.lower() not in (".html", ".htm"):
        raise MinidiffError(f"{out}: is to be a page; give a name that ends in .html")
    check_file(out)
    write_run_report(runs, out)
    console.print(f"Wrote {out}")
