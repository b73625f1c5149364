"""The command that evaluates: pictures that are drawn, or there already, beside real ones."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from minidiff import machine
from minidiff.cli.options import PLACE, Backend, Guidance, Seed, SkipBad, Threads
from minidiff.data.captioned_sheet import captioned_sheet
from minidiff.data.dataset import Dataset
from minidiff.data.imaging import save_image
from minidiff.errors import MinidiffError
from minidiff.evaluation import feature_classifier, prompt_agreement, samples
from minidiff.evaluation import report as runs_evaluate
from minidiff.evaluation.samples import MIN_IMAGES
from minidiff.files import check_new_folder, new_folder, write_json
from minidiff.formats.stable_diffusion import is_pipeline, load_pipeline
from minidiff.sampling import setup
from minidiff.sampling.text_to_image import native_size
from minidiff.terminal import announce_compiling, console, with_progress_bar

SHOWN = 64  # pictures on a sheet of prompts
LEFT_OUT = f"distances, precision, recall and agreement are left out (--n {feature_classifier.WORTH} has them)"


def evaluate(
    what: Annotated[Path, typer.Argument(help="A run, a folder of diffusers, or an .npz of pictures.")],
    against: Annotated[str, typer.Option(help="Real pictures: whatever train takes.")],
    n: Annotated[
        int | None, typer.Option(help="Pictures to draw.  [default: 1000]", min=MIN_IMAGES, max=100_000)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="From noise to picture.  [default: 50; of ddpm, all]")] = None,
    sampler: Annotated[str | None, typer.Option(help="As for sample.  [default: the folder's own]")] = None,
    guidance: Guidance = 1.0,
    raw: Annotated[bool, typer.Option("--raw", help="The last step's weights, not their moving average.")] = False,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    classifier: Annotated[str | None, typer.Option(help="Data to train it on.  [default: --against]")] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder for figures and images.", **PLACE)] = None,
    backend: Backend = "numba",
    threads: Threads = None,
) -> None:
    """How good pictures are: figures of drawn ones beside the same figures of real ones.

    They are seen by a classifier that learns from the real ones, or from other data that --classifier names, once, and
    is kept. It is not trained for fewer than 100 samples: then the figures that need it are left out. Its distances are
    no FID, which is that of another network. With --out: figures.json, neighbours.png, and the pictures for tools that
    have that one.

    Of what draws texts: whether pictures are what their prompts say. --n of the set's captions are drawn, and --n of
    its test split's; without --n, as many as that has. With --out: figures.json and two sheets.
    """
    threads = machine.use_threads(threads, backend)
    if out is not None:
        check_new_folder(out)
    if is_pipeline(what):
        if raw:
            raise MinidiffError(f"{what}: draws texts by the moving average of its weights; leave --raw out")
        _evaluate_texts(what, (against, classifier, skip_bad), n, (steps, sampler), guidance, seed, out, backend)
        return
    if what.is_file():
        pictures = samples.from_archive(what)
        if (n, steps, sampler, guidance, raw) != (None, None, None, 1, False):
            raise MinidiffError(f"{what}: these pictures are drawn already; leave --n, --steps and their like out")
    else:
        pictures = samples.sampled(what, n or 1000, steps, sampler, guidance, raw, seed, backend)
    real = runs_evaluate.open_real_images(against, pictures.shape, pictures.facts["n"], skip_bad)
    if pictures.labels is not None and pictures.classes != real.train.classes:
        raise MinidiffError(
            f"{what}: its classes are not those of {against}; evaluate what minidiff sample --npz writes"
        )
    announce_compiling(backend)
    eyes = runs_evaluate.judge_for(real, classifier, backend, pictures.facts["n"], skip_bad)
    if eyes is None:
        console.print(f"{pictures.facts['n']} samples are too few to train a classifier for; {LEFT_OUT}")
    report, images, sheet = runs_evaluate.evaluate(pictures, real, eyes, seed, threads)
    for line in facts(report):
        console.print(line)
    console.print(table(report))
    if out is not None:
        with new_folder(out) as folder:
            runs_evaluate.write(folder, report, images, real, sheet)
        console.print(f"Wrote {out}")


def _evaluate_texts(
    what: Path,
    real_ones: tuple[str, str | None, bool],
    n: int | None,
    walk: tuple[int | None, str | None],
    guidance: float,
    seed: int,
    out: Path | None,
    backend: str,
) -> None:
    """Draw captions that were trained on, and captions of the test split, and see what they are taken for.

    real_ones  the set, what the classifier learns from if not that, and whether to leave out what cannot be read
    """
    against, classifier, skip_bad = real_ones
    parts = load_pipeline(what, backend)
    _, way, steps = setup.sampling_settings(what, walk[1], 0.0, None, False, walk[0])
    real = runs_evaluate.open_real_images(against, (*native_size(parts), 3), MIN_IMAGES, skip_bad)
    if not real.train.captions:
        raise MinidiffError(f"{against}: its pictures have no captions, and {what} draws what captions say")
    announce_compiling(backend)
    chosen = {"training captions": real.train, "test captions": real.test}
    asked = {name: _some(dataset, n or len(real.test), seed) for name, dataset in chosen.items()}
    samples = sum(map(len, asked.values()))
    eyes = runs_evaluate.judge_for(real, classifier, backend, n and samples, skip_bad)
    if eyes is None:
        raise MinidiffError(f"--n {n}: {samples} samples are too few to train a classifier for; give more, or no --n")

    def draw(tick: Callable[[], object]) -> dict[str, prompt_agreement.PromptSamples]:
        return {
            name: prompt_agreement.sample_prompts(parts, some, guidance, steps, way, seed, tick)
            for name, some in asked.items()
        }

    drawn = with_progress_bar(
        "drawing", sum(prompt_agreement.num_evaluations(some, steps) for some in asked.values()), draw
    )
    reality = prompt_agreement.PromptSamples(real.test.captions, runs_evaluate.all_images(real.test))
    report = {
        "samples": {
            "of": str(what), "n": {name: len(some) for name, some in asked.items()},
            "sampler": way.name, "steps": steps, "guidance": guidance, "seed": seed,
        },
        "reference": {"of": real.train.name, "n": len(real.train)},
        "classifier": eyes.facts,
        "figures": prompt_agreement.figures(drawn | {"real test pictures": reality}, real.train, eyes),
    }  # fmt: skip
    counts = ", ".join(f"{count} {name}" for name, count in report["samples"]["n"].items())
    console.print(f"{counts} of {against}, {way.name} in {steps} steps, guidance {guidance:g}, seed {seed}")
    console.print(_shares(report["figures"]))
    if out is not None:
        _write_texts(out, report, drawn)


def _write_texts(out: Path, report: dict[str, Any], drawn: dict[str, prompt_agreement.PromptSamples]) -> None:
    """A new folder with figures.json, and for each side a sheet of its pictures above their prompts."""
    with new_folder(out) as folder:
        write_json(folder / "figures.json", report)
        for name, (some, images) in drawn.items():
            save_image(captioned_sheet(images[:SHOWN], some[:SHOWN]), folder / f"{name.replace(' ', '_')}.png")
    console.print(f"Wrote {out}")


def _some(dataset: Dataset, n: int, seed: int) -> list[str]:
    """n of the captions, or all, in any order."""
    return [dataset.captions[i] for i in np.random.default_rng(seed).permutation(len(dataset))[:n]]


def _shares(figures: dict[str, dict[str, float]]) -> Table:
    """How many pictures were taken for what they should be, side by side."""
    shown = Table(box=None, padding=(0, 3, 0, 0))
    for heading in ("right", *figures):
        shown.add_column(heading)
    for name in ("name", "tone", "both"):
        shares = [side.get(name) for side in figures.values()]
        if any(share is not None for share in shares):
            shown.add_row(name, *("" if share is None else f"{100 * share:.1f} %" for share in shares))
    return shown


def facts(report: dict[str, Any]) -> list[str]:
    """What stands beside every figure, a line for each side."""
    samples, classifier = report["samples"], report["classifier"]
    how = [f"{samples['n']} of {samples['of']}"]
    if "weights" in samples:
        how += [f"weights {samples['weights']}", f"{samples['sampler']} in {samples['steps']} steps"]
        how += [f"guidance {samples['guidance']:g}", f"seed {samples['seed']}"]
    real = {name: "{n} of {of}, {which}".format(**report[name]) for name in ("baseline", "reference")}
    seen = f"none, for fewer than {feature_classifier.WORTH} samples"
    if classifier:
        seen = "{learned_from} of {of}, right on {share:.1f} % of {tested_on} others"
        seen = seen.format(share=100 * classifier["accuracy"], **classifier)
    return [
        f"samples      {', '.join(how)}",
        f"real         {real['baseline']}",
        f"both against {real['reference']}",
        f"classifier   {seen}",
    ]


def table(report: dict[str, Any]) -> Table:
    """The figures of samples and baseline, side by side."""
    shown = Table(box=None, padding=(0, 3, 0, 0))
    sides = [report["figures"][name] for name in ("samples", "baseline")]
    for heading in ("figure", "samples", "real"):
        shown.add_column(heading)
    for name, (key, text) in ROWS.items():
        if key in sides[0]:
            shown.add_row(name, *(text(side[key]) for side in sides))
    for label in sides[0].get("agreement", ()):
        shares = [100 * side["agreement"].get(label, math.nan) for side in sides]
        shown.add_row(f"{label}, taken for one", *(f"{share:.1f} %" for share in shares))
    if report["bits_per_dim"]:
        bits = report["bits_per_dim"]
        shown.add_row("bits per dimension", "", f"at most {bits['mean']:.3f} ± {bits['error']:.3f}, of {bits['n']}")
    return shown


ROWS = {
    "Fréchet distance": ("frechet", "{:.4f}".format),
    "KID": ("kid", lambda kid: "{:.5f} ± {:.5f}".format(*kid)),
    "precision": ("precision", "{:.3f}".format),
    "recall": ("recall", "{:.3f}".format),
    "nearest in training": ("nearest", "{:.4f}".format),
    "mean colour": ("colour", lambda colour: " ".join(f"{channel:.3f}" for channel in colour)),
}
