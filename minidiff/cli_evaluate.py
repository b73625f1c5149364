"""The command that evaluates: pictures that are drawn, or there already, beside real ones."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from minidiff.errors import MinidiffError
from minidiff.options import Backend, Guidance, Seed, Threads
from minidiff.runs import evaluate as runs_evaluate
from minidiff.runs import machine, subject
from minidiff.runs.files import check_new_folder, new_folder
from minidiff.runs.judge import judge_of
from minidiff.runs.subject import LEAST
from minidiff.runs.terminal import announce_compiling, console


def evaluate(
    what: Annotated[Path, typer.Argument(help="A run, a folder of diffusers, or an .npz of pictures.")],
    against: Annotated[str, typer.Option(help="Real pictures: whatever train takes.")],
    n: Annotated[int | None, typer.Option(help="Pictures to draw.  [default: 1000]", min=LEAST, max=100_000)] = None,
    steps: Annotated[int | None, typer.Option(help="From noise to picture.  [default: 50; of ddpm, all]")] = None,
    sampler: Annotated[str | None, typer.Option(help="As for sample.  [default: the folder's own]")] = None,
    guidance: Guidance = 1.0,
    raw: Annotated[bool, typer.Option("--raw", help="The last step's weights, not their moving average.")] = False,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="A new folder for figures and pictures.")] = None,
    backend: Backend = "numba",
    threads: Threads = None,
) -> None:
    """How good pictures are: figures of drawn ones beside the same figures of real ones.

    They are seen by a classifier that learns from the real ones, once, and is kept. Its distances are no FID, which is
    that of another network. With --out: figures.json, neighbours.png, and the pictures for tools that have that one.
    """
    threads = machine.use_threads(threads, backend)
    if out is not None:
        check_new_folder(out)
    if what.is_file():
        if (n, steps, sampler, guidance, raw) != (None, None, None, 1, False):
            raise MinidiffError(f"{what}: these pictures are drawn already; leave --n, --steps and their like out")
        pictures = subject.given(what)
    else:
        pictures = subject.drawn(what, n or 1000, steps, sampler, guidance, raw, seed, backend)
    real = runs_evaluate.open_real(against, pictures.shape, pictures.facts["n"])
    if pictures.labels is not None and pictures.classes != real.train.classes:
        raise MinidiffError(
            f"{what}: its classes are not those of {against}; evaluate what minidiff sample --npz writes"
        )
    announce_compiling(backend)
    judge = judge_of(real.train, real.test, backend)
    report, images, sheet = runs_evaluate.evaluate(pictures, real, judge, seed, threads)
    for line in facts(report):
        console.print(line)
    console.print(table(report))
    if out is not None:
        with new_folder(out) as folder:
            runs_evaluate.write(folder, report, images, real, sheet)
        console.print(f"Wrote {out}")


def facts(report: dict[str, Any]) -> list[str]:
    """What stands beside every figure, a line for each side."""
    samples, classifier = report["samples"], report["classifier"]
    how = [f"{samples['n']} of {samples['of']}"]
    if "weights" in samples:
        how += [f"weights {samples['weights']}", f"{samples['sampler']} in {samples['steps']} steps"]
        how += [f"guidance {samples['guidance']:g}", f"seed {samples['seed']}"]
    real = {name: "{n} of {of}, {which}".format(**report[name]) for name in ("baseline", "reference")}
    seen = "{learned_from} pictures, right on {share:.1f} % of {tested_on} others"
    return [
        f"samples      {', '.join(how)}",
        f"real         {real['baseline']}",
        f"both against {real['reference']}",
        f"classifier   of {seen.format(share=100 * classifier['accuracy'], **classifier)}",
    ]


def table(report: dict[str, Any]) -> Table:
    """The figures of samples and baseline, side by side."""
    shown = Table(box=None, padding=(0, 3, 0, 0))
    sides = [report["figures"][name] for name in ("samples", "baseline")]
    for heading in ("figure", "samples", "real"):
        shown.add_column(heading)
    for name, text in ROWS.items():
        shown.add_row(name, *(text(side) for side in sides))
    for label in sides[0].get("agreement", ()):
        shares = [100 * side["agreement"].get(label, math.nan) for side in sides]
        shown.add_row(f"{label}, taken for one", *(f"{share:.1f} %" for share in shares))
    if report["bits_per_dim"]:
        bits = report["bits_per_dim"]
        shown.add_row("bits per dimension", "", f"at most {bits['mean']:.3f} ± {bits['error']:.3f}, of {bits['n']}")
    return shown


ROWS = {
    "Fréchet distance": lambda side: f"{side['frechet']:.4f}",
    "KID": lambda side: "{:.5f} ± {:.5f}".format(*side["kid"]),
    "precision": lambda side: f"{side['precision']:.3f}",
    "recall": lambda side: f"{side['recall']:.3f}",
    "nearest in training": lambda side: f"{side['nearest']:.4f}",
    "mean colour": lambda side: " ".join(f"{channel:.3f}" for channel in side["colour"]),
}
