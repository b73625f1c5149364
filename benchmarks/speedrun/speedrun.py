"""The speedrun: the best images of CIFAR-10 for a budget of reference minutes. Rules and records: docs/speedrun.md.

    python benchmarks/speedrun/speedrun.py DATA --recipe small-cpu --minutes 20 --out OUT

trains a recipe or a candidate (candidates.py) until the budget is spent (clock.py), or for a number of steps whose
minutes are known (pace.py), samples 5,000 images with the averaged weights, scores them once and appends a line to the
ledger. OUT is an ordinary run; the same command resumes it after an interruption, and scores it again once it is
trained.
"""

import json
import math
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
from candidates import SAMPLINGS, Sampling, cost, find, find_sampling
from clock import EVERY, Clock, product_rate
from records import LEDGER, PACES, append, read_ledger
from splits import WEIGHTS, Splits, open_classifier, open_splits

from minidiff import machine
from minidiff.data.batches import evenly_spaced, prefetch
from minidiff.data.dataset import Dataset, fingerprint, slices
from minidiff.data.imaging import save_image, sheet
from minidiff.errors import MinidiffError
from minidiff.evaluation import report
from minidiff.evaluation.feature_classifier import FeatureClassifier
from minidiff.files import open_json, write_json
from minidiff.sampling.inputs import BATCH_SIZE
from minidiff.sampling.outputs import finished
from minidiff.training import state
from minidiff.training.config import TrainConfig
from minidiff.training.dry_run import compile_for_training
from minidiff.training.forecast.forecast import forecast, tenth
from minidiff.training.kinds.unet_run import UNetRun
from minidiff.training.log import read_log
from minidiff.training.loop import fit

IMAGES = 5_000  # of a score; screens may take fewer
SAMPLING = SAMPLINGS["ddim-25"]
KEYS = ("recipe", "minutes", "sampling", "seed", "commit")  # of a final score, which is once
SHOWN = 100  # on the sheet, ten of each class
SAVE_EVERY = 120.0  # seconds
CHECKPOINTS = 20  # of a run of a fixed number of steps


def open_track_run(
    folder: Path, recipe: str, data: str, dataset: Dataset, seed: int, threads: int, steps: int | None = None
) -> UNetRun:
    """The run of a folder, or a new one of that recipe or candidate, class-conditional.

    steps: of the run, None: the recipe's. Raises MinidiffError if the folder's run has another configuration.
    """
    chosen = find(recipe)
    own = {"seed": seed, "threads": threads, "classes": dataset.classes, "fingerprint": fingerprint(dataset)}
    own |= {} if steps is None else {"steps": steps}
    config = TrainConfig(abspath(data), **chosen.choices | own)
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


def train_steps(run: UNetRun, dataset: Dataset, validation: Dataset) -> None:
    """Train to the run's last step, as `minidiff train` does, with log and checkpoints."""
    if (run.folder / "metrics.csv").exists():
        state.roll_back(run)
    every = math.ceil(run.config.steps / CHECKPOINTS)
    fit(run, dataset, every, lambda stats: None, lambda step, loss: None, lambda: False, validation=validation)


def outcome(run: UNetRun) -> dict[str, Any]:
    """The final loss, the mean of the last tenth of the steps, and what was forecast of it after the first tenth.

    A forecast is [value, standard error]; None if there is none for such a run.
    """
    losses, end = read_log(run.folder / "metrics.csv")[1], tenth(run.config.steps)
    expected = forecast(run, losses[:end])
    estimates = {"loss": expected.loss, "distance": expected.distance} if expected else {}
    rounded = {name: [round(x, 4) for x in estimate] for name, estimate in estimates.items() if estimate}
    return {"loss": round(mean(losses[-end:]), 4), "forecast": rounded or None}


def save(run: UNetRun, clock: Clock) -> None:
    """Save the run's state, and the minutes that it took."""
    state.save(run)
    write_json(run.folder / "clock.json", {"minutes": clock.minutes, "rates": clock.rates})


def pace_of(recipe: str, paces: Path = PACES) -> dict[str, Any]:
    """The newest pace of a recipe or candidate with that network, batch size and optimiser: of a step, by pace.py.

    Raises MinidiffError if there is none.
    """
    found = [row for row in read_ledger(paces) if cost(row["recipe"]) == cost(recipe)]
    if not found:
        raise MinidiffError(f"{paces}: has no pace of {recipe}; measure it with pace.py on idle cores")
    return {key: found[-1][key] for key in ("minutes", "ms", "gflops", "commit")}


def spread(rates: list[float]) -> list[int]:
    """The smallest, median and largest of rates, in GFLOP/s."""
    return [round(of(rates) / 1e9) for of in (min, median, max)]


def open_clock(run: UNetRun, threads: int) -> Clock:
    """A clock that goes on from the run's last checkpoint."""
    if run.step == 0:
        return Clock(lambda: product_rate(threads))
    before = open_json(run.folder / "clock.json").value
    clock = Clock(lambda: product_rate(threads), before["minutes"])
    clock.rates = before["rates"] + clock.rates
    return clock


def sample_images(run: UNetRun, labels: np.ndarray, seed: int, sampling: Sampling = SAMPLING) -> np.ndarray:
    """A sample for each label (n,) with the averaged weights: (n, H, W, C) uint8."""
    rng, images, classes = np.random.default_rng([seed, 0]), [], len(run.config.classes)
    with run.optimizer.averaged():
        for part in slices(len(labels), BATCH_SIZE):
            x0 = sampling.images(run.model, run.schedule, labels[part], classes, rng, run.shape)
            images.append(finished(x0))
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


def score(
    run: UNetRun, splits: Splits, which: str, seed: int, sampling: Sampling, n: int
) -> tuple[dict[str, Any], np.ndarray]:
    """The figures of n samples and of real images, and the samples.

    The real ones are those of the other split, so they have nearly the same figures in both scores.
    """
    classifier = open_classifier(splits.train)
    reference, other = (splits.final, splits.selection)[:: 1 if which == "final" else -1]
    labels = np.arange(n) * len(splits.train.classes) // n
    images = sample_images(run, labels, seed, sampling)
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


def check_final(ledger: Path, key: dict[str, Any], n: int) -> None:
    """Raises MinidiffError for another number of samples, or if the ledger has a row with these values already."""
    if n != IMAGES:
        raise MinidiffError(f"--n {n}: a final score has {IMAGES} samples; leave --n or --score final out")
    if any(key.items() <= row.items() for row in read_ledger(ledger)):
        raise MinidiffError(f"{ledger}: has the final score of {key} already; leave --score final out")


def train_by_clock(run: UNetRun, splits: Splits, minutes: float) -> dict[str, Any]:
    """Train for so many reference minutes; what the row says of them."""
    clock = open_clock(run, run.config.threads)
    if clock.minutes < minutes:
        train(run, splits.train, clock, minutes)
    return {"spent": round(clock.minutes, 2), "gflops": spread(clock.rates)}


def train_by_steps(run: UNetRun, splits: Splits, pace: dict[str, Any]) -> dict[str, Any]:
    """Train for the run's number of steps; what the row says of its minutes, and of its loss."""
    if run.step < run.config.steps:
        train_steps(run, splits.train, splits.selection)
    return {"pace": pace, **outcome(run)}


def main(
    data: Annotated[str, typer.Argument(help="CIFAR-10's training set, 50,000 images, as for minidiff train.")],
    out: Annotated[Path, typer.Option(help="The run's folder.")],
    recipe: Annotated[str, typer.Option(help="Recipe of minidiff train, or candidate.")] = "small-cpu",
    minutes: Annotated[float, typer.Option(help="Budget in reference minutes; the tracks are 20 and 60.")] = 20,
    steps: Annotated[int | None, typer.Option(help="Training steps, in place of --minutes; see pace.py.")] = None,
    sampling: Annotated[str, typer.Option(help="Sampling settings, by name.")] = "ddim-25",
    n: Annotated[int, typer.Option(help="Number of samples; a final score has 5,000.")] = IMAGES,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    which: Annotated[
        Literal["selection", "final"], typer.Option("--score", help="The images that are compared with; final: once.")
    ] = "selection",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    ledger: Annotated[Path, typer.Option(help="File that the scores are appended to.")] = LEDGER,
) -> None:
    """Train a recipe for a budget of reference minutes, score its samples, and append a row to the ledger."""
    pace = pace_of(recipe) if steps else None
    minutes = round(steps * pace["minutes"], 2) if steps and pace else minutes
    chosen = find_sampling(sampling, find(recipe).schedule)
    key = dict(zip(KEYS, (recipe, minutes, sampling, seed, commit()), strict=True))
    if which == "final":
        check_final(ledger, key | {"score": "final"}, n)
    machine.use_threads(threads, "numba")
    splits = open_splits(data)
    run = open_track_run(out, recipe, data, splits.train, seed, threads, steps)
    compile_for_training(run, splits.train)
    spent = train_by_steps(run, splits, pace) if pace else train_by_clock(run, splits, minutes)
    figures, images = score(run, splits, which, seed, chosen, n)
    save_image(sheet(images[evenly_spaced(n, SHOWN)], columns=10), out / f"samples-{sampling}.png")
    row = key | {
        "score": which,
        "n": n,
        "evaluations": chosen.evaluations(run.schedule),
        "steps": run.step,
        **spent,
        "threads": threads,
        "processor": machine.describe()["processor"],
        "data": fingerprint(splits.train),
        "classifier": sha256(WEIGHTS.read_bytes()).hexdigest()[:16],
        "date": time.strftime("%Y-%m-%d"),
        **figures,
    }
    append(ledger, row)
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    try:
        typer.run(main)
    except MinidiffError as error:
        print(f"minidiff: {error}", file=sys.stderr)
        sys.exit(2)
