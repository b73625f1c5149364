"""The speedrun: the best images of CIFAR-10 for a budget of reference minutes. Rules and records: docs/speedrun.md.

    python benchmarks/speedrun/speedrun.py DATA --recipe small-cpu --minutes 20

trains a recipe until the budget is spent (clock.py), samples 5,000 images with the averaged weights, scores them once
and appends a line to the ledger. OUT is an ordinary run; the same command resumes it after an interruption.
"""

import json
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from itertools import count
from os.path import abspath
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any, Literal

import numpy as np
import typer
from clock import EVERY, Clock, product_rate
from records import LEDGER, read_ledger
from splits import WEIGHTS, Splits, open_classifier, open_splits

from minidiff import machine
from minidiff.data.batches import evenly_spaced, prefetch
from minidiff.data.dataset import Dataset, fingerprint, slices
from minidiff.data.imaging import save_image, sheet
from minidiff.diffusion.reverse import last_x_t, sample
from minidiff.errors import MinidiffError
from minidiff.evaluation import report
from minidiff.evaluation.feature_classifier import FeatureClassifier
from minidiff.files import open_json, write_json
from minidiff.sampling.inputs import BATCH_SIZE
from minidiff.sampling.outputs import finished
from minidiff.training import recipes, state
from minidiff.training.config import TrainConfig
from minidiff.training.dry_run import compile_for_training
from minidiff.training.kinds.unet_run import UNetRun

IMAGES, STEPS = 5_000, 25  # of a score; sampling steps of each, by DDIM without guidance
SHOWN = 100  # on the sheet, ten of each class
SAVE_EVERY = 120.0  # seconds


def open_track_run(folder: Path, recipe: str, data: str, dataset: Dataset, seed: int, threads: int) -> UNetRun:
    """The run of a folder, or a new one of that recipe, class-conditional.

    Raises MinidiffError if the folder's run has another configuration.
    """
    chosen = recipes.find(recipe)
    own = {"seed": seed, "threads": threads, "classes": dataset.classes, "fingerprint": fingerprint(dataset)}
    config = TrainConfig(abspath(data), **chosen.choices, **own)
    if not state.state_file(folder).exists():
        network = chosen.network(dataset.shape, len(dataset.classes) + 1)
        return state.new_run(UNetRun, folder, config, network, chosen.schedule)
    run = state.open_run(folder, UNetRun)
    if replace(run.config, threads=threads) != config:
        raise MinidiffError(f"{folder}: is a run of another recipe, seed or dataset; choose another --out")
    return replace(run, config=config)


def train(run: UNetRun, dataset: Dataset, clock: Clock, budget: float) -> None:
    """Train until the clock has counted `budget` reference minutes.

    The learning rate follows the recipe's schedule over the spent part of the budget, in place of its number of steps.
    """
    saved = time.monotonic()
    with closing(prefetch(run.batches(dataset), count(run.step + 1))) as batches:
        for batch in batches:
            step, spent = run.step + 1, clock.minutes / budget
            steps = max(step, round(step / max(spent, 1e-6)))  # in total, at the pace so far
            run.optimizer.lr = replace(run.config, steps=min(steps, 10**9)).rate(step)
            run.train_batch(batch, np.random.default_rng([run.config.seed, step]))
            clock.measure(0 if clock.minutes >= budget else EVERY)
            done = clock.minutes >= budget
            if done or time.monotonic() - saved > SAVE_EVERY:
                save(run, clock)
                saved = time.monotonic()
            if done:
                return


def save(run: UNetRun, clock: Clock) -> None:
    """Save the run's state, and the minutes that it took."""
    state.save(run)
    write_json(run.folder / "clock.json", {"minutes": clock.minutes, "rates": clock.rates})


def open_clock(run: UNetRun, threads: int) -> Clock:
    """A clock that goes on from the run's last checkpoint."""
    if run.step == 0:
        return Clock(lambda: product_rate(threads))
    before = open_json(run.folder / "clock.json").value
    clock = Clock(lambda: product_rate(threads), before["minutes"])
    clock.rates = before["rates"] + clock.rates
    return clock


def sample_images(run: UNetRun, labels: np.ndarray, seed: int) -> np.ndarray:
    """A sample for each label (n,) with the averaged weights, by DDIM: (n, H, W, C) uint8."""
    rng, images = np.random.default_rng([seed, 0]), []
    with run.optimizer.averaged():
        for part in slices(len(labels), BATCH_SIZE):
            cond = labels[part]
            trajectory = sample(run.model, run.schedule, (len(cond), *run.shape), rng, STEPS, cond=cond)
            images.append(finished(last_x_t(trajectory)))
    return np.concatenate(images)


def scores(
    images: np.ndarray, labels: np.ndarray, reference: Dataset, train_set: Dataset, classifier: FeatureClassifier
) -> dict[str, Any]:
    """The figures of images (n, H, W, C) uint8 against a reference, as `minidiff evaluate` computes them, rounded."""
    sides = (classifier.classify(side) for side in (images, report.all_images(reference)))
    _, distances = report.nearest_training_images(images, train_set)
    found = report.feature_figures(*sides, labels, train_set.classes, 0) | report.pixel_figures(images, distances)
    found |= {"kid": found["kid"][0], "agreement": mean(found["agreement"].values())}
    del found["colour"]
    return {name: round(value, 4) for name, value in found.items()}


def score(run: UNetRun, splits: Splits, which: str, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """The figures of IMAGES samples and of real images, and the samples.

    The real ones are those of the other split, so they have nearly the same figures in both scores.
    """
    classifier = open_classifier(splits.train)
    reference, other = (splits.final, splits.selection)[:: 1 if which == "final" else -1]
    labels = np.arange(IMAGES) * len(splits.train.classes) // IMAGES
    images = sample_images(run, labels, seed)
    machine.use_threads(run.config.threads, "numpy")
    figures = {
        "samples": scores(images, labels, reference, splits.train, classifier),
        "real": scores(report.all_images(other), other.labels, reference, splits.train, classifier),
    }
    return figures, images


def commit() -> str:
    """The commit of the working tree; with + if files differ from it."""
    try:
        describe = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
        done = subprocess.run(describe, cwd=LEDGER.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def check_unscored(ledger: Path, key: dict[str, Any]) -> None:
    """Raises MinidiffError if the ledger has a row with these values: final images are used once."""
    if any(key.items() <= row.items() for row in read_ledger(ledger)):
        raise MinidiffError(f"{ledger}: has the final score of {key} already; leave --score final out")


def main(
    data: Annotated[str, typer.Argument(help="CIFAR-10's training set, 50,000 images, as for minidiff train.")],
    out: Annotated[Path, typer.Option(help="The run's folder.")],
    recipe: Annotated[str, typer.Option(help="Recipe of minidiff train.")] = "small-cpu",
    minutes: Annotated[float, typer.Option(help="Budget in reference minutes; the tracks are 20 and 60.")] = 20,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    which: Annotated[
        Literal["selection", "final"], typer.Option("--score", help="The images that are compared with; final: once.")
    ] = "selection",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    ledger: Annotated[Path, typer.Option(help="File that the scores are appended to.")] = LEDGER,
) -> None:
    """Train a recipe for a budget of reference minutes, score 5,000 samples, and append a row to the ledger."""
    key = {"recipe": recipe, "minutes": minutes, "seed": seed, "commit": commit()}
    if which == "final":
        check_unscored(ledger, key | {"score": "final"})
    machine.use_threads(threads, "numba")
    splits = open_splits(data)
    run = open_track_run(out, recipe, data, splits.train, seed, threads)
    compile_for_training(run, splits.train)
    clock = open_clock(run, threads)
    if clock.minutes < minutes:
        train(run, splits.train, clock, minutes)
    spent = clock.minutes
    figures, images = score(run, splits, which, seed)
    save_image(sheet(images[evenly_spaced(IMAGES, SHOWN)], columns=10), out / "samples.png")
    row = key | {
        "score": which,
        "steps": run.step,
        "spent": round(spent, 2),
        "gflops": [round(of(clock.rates) / 1e9) for of in (min, median, max)],
        "threads": threads,
        "processor": machine.describe()["processor"],
        "data": fingerprint(splits.train),
        "classifier": sha256(WEIGHTS.read_bytes()).hexdigest()[:16],
        "date": time.strftime("%Y-%m-%d"),
        **figures,
    }
    with ledger.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    try:
        typer.run(main)
    except MinidiffError as error:
        print(f"minidiff: {error}", file=sys.stderr)
        sys.exit(2)
