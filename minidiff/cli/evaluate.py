"""The command that evaluates images: metrics of samples, or of an archive, beside those of real images."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.table import Table

from minidiff import machine, ranks
from minidiff.cli.options import EMA, PLACE, Backend, Embeddings, Guidance, Karras, LoRAs, Seed, SkipBad, Threads
from minidiff.data.captioned_sheet import captioned_sheet
from minidiff.data.dataset import Dataset, subset
from minidiff.data.imaging import save_image
from minidiff.errors import MinidiffError
from minidiff.evaluation import feature_classifier, prompt_agreement, report, samples
from minidiff.evaluation.prompt_agreement import PromptSamples
from minidiff.evaluation.samples import MIN_IMAGES
from minidiff.files import check_new_folder, new_folder, write_json
from minidiff.formats.pipeline import TextPipeline
from minidiff.sampling.adapted import adapted
from minidiff.sampling.dry_run import compile_for_sampling
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.settings import accuracy_warning, sampling_settings
from minidiff.terminal import console, print_warning, with_progress_bar

SHOWN = 64  # images on a sheet of prompts
LEFT_OUT = f"distances, precision, recall and agreement are left out (--n {feature_classifier.MIN_SAMPLES} has them)"


class _Data(NamedTuple):
    """The options that name datasets: --against, --classifier and --skip-bad."""

    against: str
    classifier: str | None
    skip_bad: bool


def evaluate(
    what: Annotated[Path, typer.Argument(help="A run, a diffusers folder, or an .npz archive of images.")],
    against: Annotated[str, typer.Option(help="Dataset of real images, as for train.")],
    n: Annotated[
        int | None,
        typer.Option(
            help="Number of samples.  [default: 1000; of a text run, the test split's]", min=MIN_IMAGES, max=100_000
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Number of sampling steps.  [default: 50; with ddpm, all; with consistency, 2]")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="As for sample.  [default: the folder's own]")] = None,
    karras: Karras = False,
    guidance: Guidance = 1.0,
    raw: Annotated[
        bool, typer.Option("--raw", help="Use the weights of the last step, not their moving average (EMA).")
    ] = False,
    ema: EMA = None,
    lora: LoRAs = None,
    embedding: Embeddings = None,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    classifier: Annotated[
        str | None, typer.Option(help="Dataset that the feature classifier is trained on.  [default: --against]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder for figures and images.", **PLACE)] = None,
    backend: Backend = "numba",
    threads: Threads = None,
) -> None:
    """Fréchet distance, KID, precision, recall and more, of samples and of held-out real images.

    Features come from a classifier that is trained on the real images, or on --classifier's dataset, once, and cached.
    So the distances are not comparable with FIDs, which use Inception's features. For fewer than 100 samples no
    classifier is trained, and the metrics that need one are left out. With --out: figures.json, neighbours.png (the
    nearest training images), and the images for tools that compute the FID.

    For a text-conditional run: prompt agreement, and the Fréchet distance to the real images of the same captions.
    --n captions of the training set are sampled, and --n of the test split; by default as many as the test split has.
    With --out: figures.json and two sheets.

    Started by mpiexec, the processes share out the batches of samples and of real images.
    """
    threads = machine.use_threads(threads, backend)
    if out is not None:
        check_new_folder(out)
    data = _Data(against, classifier, skip_bad)
    if what.is_file():
        images = samples.from_archive(what)
        if (n, steps, sampler, ema, lora, embedding) != (None,) * 6 or karras or raw or guidance != 1:
            raise MinidiffError(f"{what}: is an archive of images; leave --n, --steps and other sampling options out")
    else:
        added = lora or [], embedding or []
        kind = "text" if any(added) else ("unet", "text")
        pipeline = open_pipeline(what, backend, "raw" if raw else None, sampler, kind=kind, ema=ema)
        pipeline, steps = sampling_settings(pipeline, steps, karras=karras)
        if isinstance(pipeline, TextPipeline):
            if raw:
                reason = "is text-conditional, evaluated by the averaged weights only"
                raise MinidiffError(f"{what}: {reason}; leave --raw out")
            weights = " + ".join([samples.weights_of(raw, ema), *added[0], *map(str, added[1])])
            with adapted(pipeline, *added) as pipeline:
                _evaluate_prompts(pipeline, data, n, steps, guidance, weights, seed, out)
            return
        compile_for_sampling(pipeline)
        images = samples.sampled(pipeline, n or 1000, steps, guidance, samples.weights_of(raw, ema), seed)
        print_warning(images.warning)
    _evaluate_images(what, images, data, seed, out, backend, threads)


def _evaluate_images(
    what: Path,
    subject: samples.EvaluatedImages,
    data: _Data,
    seed: int,
    out: Path | None,
    backend: str,
    threads: int,
) -> None:
    """Print the metrics of images beside those of real ones, and write them to a new folder."""
    real = report.open_real_images(data.against, subject.shape, subject.facts["n"], data.skip_bad)
    if subject.labels is not None and subject.classes != real.train.classes:
        raise MinidiffError(
            f"{what}: its classes are not those of {data.against}; evaluate what minidiff sample --npz writes"
        )
    classifier = report.classifier_for(real, data.classifier, backend, subject.facts["n"], data.skip_bad)
    if classifier is None:
        console.print(f"{subject.facts['n']} samples are too few to train a classifier for; {LEFT_OUT}")
    contents, images, sheet = report.evaluate(subject, real, classifier, seed, threads)
    for line in facts(contents):
        console.print(line)
    console.print(table(contents))
    if out is not None and ranks.rank() == 0:
        with new_folder(out) as folder:
            report.write_report(folder, contents, images, real, sheet)
        console.print(f"Wrote {out}")


def _evaluate_prompts(
    pipeline: TextPipeline,
    data: _Data,
    n: int | None,
    steps: int,
    guidance: float,
    weights: str,
    seed: int,
    out: Path | None,
) -> None:
    """Sample captions of the training set and of the test split, and print how often the images agree with them."""
    print_warning(accuracy_warning(pipeline, steps))
    backend, sampler = pipeline.unet.backend.name, samples.name_of(pipeline.sampler)
    real = report.open_real_images(data.against, (*pipeline.image_shape[:2], 3), MIN_IMAGES, data.skip_bad)
    if not real.train.captions:
        raise MinidiffError(f"{data.against}: its images have no captions, which {pipeline.folder} is conditioned on")
    compile_for_sampling(pipeline)
    splits = {"training captions": real.train, "test captions": real.test}
    chosen = {name: _some_captions(dataset, n or len(real.test), seed) for name, dataset in splits.items()}
    total = sum(len(some.captions) for some in chosen.values())
    classifier = report.classifier_for(real, data.classifier, backend, n and total, data.skip_bad)
    if classifier is None:
        raise MinidiffError(f"--n {n}: {total} samples are too few to train a classifier for; give more, or no --n")

    def generate(tick: Callable[[], object]) -> dict[str, PromptSamples]:
        return {
            name: PromptSamples(
                some.captions,
                prompt_agreement.sample_prompts(pipeline, some.captions, guidance, steps, seed, tick),
                report.all_images(some),
            )
            for name, some in chosen.items()
        }

    evaluations = sum(prompt_agreement.num_sampling_steps(some.captions, steps) for some in chosen.values())
    generated = with_progress_bar("sampling", evaluations, generate)
    baseline = PromptSamples(real.test.captions, report.all_images(real.test))
    contents = {
        "samples": {
            "of": str(pipeline.folder), "n": {name: len(some.captions) for name, some in chosen.items()},
            "weights": weights, "sampler": sampler, "steps": steps, "guidance": guidance, "seed": seed,
        },
        "reference": {"of": real.train.name, "n": len(real.train)},
        "classifier": classifier.facts,
        "figures": prompt_agreement.figures(generated | {"real test pictures": baseline}, real.train, classifier),
    }  # fmt: skip
    counts = ", ".join(f"{count} {name}" for name, count in contents["samples"]["n"].items())
    console.print(f"{counts} of {data.against}, {sampler} in {steps} steps, guidance {guidance:g}, seed {seed}")
    console.print(_agreement_table(contents["figures"]))
    if out is not None and ranks.rank() == 0:
        _write_prompt_report(out, contents, generated)


def _write_prompt_report(out: Path, contents: dict[str, Any], generated: dict[str, PromptSamples]) -> None:
    """Write a new folder with figures.json and a captioned sheet of the samples of each split."""
    with new_folder(out) as folder:
        write_json(folder / "figures.json", contents)
        for name, (prompts, images, _) in generated.items():
            save_image(captioned_sheet(images[:SHOWN], prompts[:SHOWN]), folder / f"{name.replace(' ', '_')}.png")
    console.print(f"Wrote {out}")


def _some_captions(dataset: Dataset, n: int, seed: int) -> Dataset:
    """n captions at random with their images, or all if there are fewer, in random order."""
    return subset(dataset, np.random.default_rng(seed).permutation(len(dataset))[:n])


def _agreement_table(figures: dict[str, dict[str, float]]) -> Table:
    """Prompt agreement in percent and the Fréchet distance, a column for each set of images."""
    shown = Table(box=None, padding=(0, 3, 0, 0))
    for heading in ("correct", *figures):
        shown.add_column(heading)
    for name in ("name", "tone", "both"):
        fractions = [side.get(name) for side in figures.values()]
        if any(fraction is not None for fraction in fractions):
            shown.add_row(name, *("" if fraction is None else f"{100 * fraction:.1f} %" for fraction in fractions))
    distances = [side.get("frechet") for side in figures.values()]
    shown.add_row("Fréchet distance", *("" if distance is None else f"{distance:.2f}" for distance in distances))
    return shown


def facts(contents: dict[str, Any]) -> list[str]:
    """What was compared, a line each: samples, baseline, reference, classifier."""
    samples, classifier = contents["samples"], contents["classifier"]
    how = [f"{samples['n']} of {samples['of']}"]
    if "weights" in samples:
        how += [f"weights {samples['weights']}", f"{samples['sampler']} in {samples['steps']} steps"]
        how += [f"guidance {samples['guidance']:g}", f"seed {samples['seed']}"]
    real = {name: "{n} of {of}, {which}".format(**contents[name]) for name in ("baseline", "reference")}
    trained = f"none, for fewer than {feature_classifier.MIN_SAMPLES} samples"
    if classifier:
        trained = "trained on {learned_from} of {of}, accuracy {percent:.1f} % on {tested_on} others"
        trained = trained.format(percent=100 * classifier["accuracy"], **classifier)
    return [
        f"samples      {', '.join(how)}",
        f"baseline     {real['baseline']}",
        f"reference    {real['reference']}",
        f"classifier   {trained}",
    ]


def table(contents: dict[str, Any]) -> Table:
    """The figures of samples and baseline, a column each."""
    shown = Table(box=None, padding=(0, 3, 0, 0))
    sides = [contents["figures"][name] for name in ("samples", "baseline")]
    for heading in ("figure", "samples", "baseline"):
        shown.add_column(heading)
    for name, (key, text) in ROWS.items():
        if key in sides[0]:
            shown.add_row(name, *(text(side[key]) for side in sides))
    for label in sides[0].get("agreement", ()):
        percents = [100 * side["agreement"].get(label, math.nan) for side in sides]
        shown.add_row(f"class agreement, {label}", *(f"{percent:.1f} %" for percent in percents))
    if contents["bits_per_dim"]:
        bits = contents["bits_per_dim"]
        shown.add_row("bits per dimension", "", f"at most {bits['mean']:.3f} ± {bits['error']:.3f}, of {bits['n']}")
    return shown


ROWS = {
    "Fréchet distance": ("frechet", "{:.4f}".format),
    "KID": ("kid", lambda kid: "{:.5f} ± {:.5f}".format(*kid)),
    "precision": ("precision", "{:.3f}".format),
    "recall": ("recall", "{:.3f}".format),
    "nearest neighbour distance": ("nearest", "{:.4f}".format),
    "mean colour": ("colour", lambda colour: " ".join(f"{channel:.3f}" for channel in colour)),
}
