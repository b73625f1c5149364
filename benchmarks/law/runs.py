"""The runs of the law: small class-conditional U-Nets, trained to the end, with their loss curves and distances.

    python benchmarks/law/runs.py CIFAR10 FASHION_MNIST --out runs/law

trains what is missing in OUT and appends a row a run to the ledger, runs.jsonl: 3 widths x 4 lengths on CIFAR-10 and
runs with other batch sizes, rates and datasets, from which fit.py computes the law, then ten on which it is tested.
Data, classifier and score are the speedrun's.
"""

import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "speedrun"))
from speedrun import sample_images
from splits import Splits, open_classifier, open_splits

from minidiff import machine
from minidiff.data import open_dataset
from minidiff.data.dataset import Dataset, fingerprint
from minidiff.errors import MinidiffError
from minidiff.evaluation import report
from minidiff.evaluation.feature_classifier import Classified, FeatureClassifier
from minidiff.training import recipes, state
from minidiff.training.config import TrainConfig
from minidiff.training.dry_run import compile_for_training
from minidiff.training.kinds.unet_run import UNetRun
from minidiff.training.log import read_log
from minidiff.training.loop import fit

LEDGER = Path(__file__).with_name("runs.jsonl")
WIDTHS, LENGTHS = (8, 16, 32), (200, 400, 800, 1600)  # of the grid
IMAGES = 1_000  # of a distance


@dataclass(frozen=True)
class Plan:
    """A run: its dataset, the network's width, and what differs from the defaults of `minidiff train --by-class`."""

    width: int
    steps: int
    data: str = "cifar10"
    batch_size: int = 32
    lr: float = 1e-3
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.data}-w{self.width}-s{self.steps}-b{self.batch_size}-lr{self.lr:g}-seed{self.seed}"


GRID = [Plan(width, steps) for width in (32, 16, 8) for steps in LENGTHS[::-1]]
VARIED = [
    Plan(16, 800, batch_size=16, seed=1),
    Plan(8, 800, batch_size=16, seed=2),
    Plan(16, 800, batch_size=16, lr=5e-4, seed=3),
    Plan(16, 800, batch_size=16, lr=2e-3, seed=4),
    Plan(8, 800, data="cats_dogs", batch_size=16, seed=5),
    Plan(16, 800, data="fashion_mnist", batch_size=16, seed=6),
    Plan(8, 800, data="fashion_mnist", seed=7),
    Plan(8, 300, batch_size=48, seed=8),
    Plan(16, 900, seed=9),
    Plan(24, 300, batch_size=16, seed=10),
]
HELD_OUT = [
    Plan(32, 600, batch_size=16, lr=2e-3, seed=33),
    Plan(32, 700, batch_size=16, seed=34),
    Plan(8, 600, batch_size=16, lr=2e-3, seed=38),
    Plan(8, 400, batch_size=24, seed=39),
    Plan(16, 400, batch_size=16, lr=1.5e-3, seed=31),
    Plan(8, 200, batch_size=64, seed=37),
    Plan(16, 300, lr=1.5e-3, seed=40),
    Plan(24, 250, batch_size=16, seed=32),
    Plan(16, 1000, batch_size=16, lr=2e-3, seed=36),
    Plan(24, 600, batch_size=16, lr=2e-3, seed=35),
]
ROLES = {"grid": GRID, "varied": VARIED, "held out": HELD_OUT}


@dataclass(frozen=True)
class Lab:
    """The folder of the runs, the datasets' paths by name, and threads."""

    out: Path
    paths: dict[str, str]
    threads: int

    @cached_property
    def splits(self) -> Splits:
        return open_splits(self.paths["cifar10"])

    @cached_property
    def classifier(self) -> FeatureClassifier:
        return open_classifier(self.splits.train)

    @cached_property
    def reference(self) -> Classified:
        return self.classifier.classify(report.all_images(self.splits.selection))

    def datasets(self, data: str) -> tuple[Dataset, Dataset]:
        """Training set, and the images of validation losses."""
        if data == "cifar10":
            return self.splits.train, self.splits.selection
        train = open_dataset(self.paths[data])
        return train, train

    def open(self, plan: Plan, train: Dataset) -> UNetRun:
        """The run of a plan at its last checkpoint, or a new one."""
        folder = self.out / plan.name
        if state.state_file(folder).exists():
            run = state.open_run(folder, UNetRun)
            state.roll_back(run)
            return run
        recipe = recipes.find(None)
        config = TrainConfig(
            self.paths[plan.data], steps=plan.steps, batch_size=plan.batch_size, lr=plan.lr, seed=plan.seed,
            flip=train.mirrors, threads=self.threads, classes=train.classes, fingerprint=fingerprint(train),
        )  # fmt: skip
        network = recipe.network(train.shape, len(train.classes) + 1, width=plan.width)
        return state.new_run(UNetRun, folder, config, network, recipe.schedule)


def train(run: UNetRun, dataset: Dataset, validation: Dataset, until: int | None = None) -> None:
    """Train a run to its end, or to the step `until`; prints processor seconds of a step, the median."""
    times = [time.process_time()]
    fit(
        run, dataset, checkpoint_every=400, keep=1, validation=validation,
        on_step=lambda stats: times.append(time.process_time()),
        on_checkpoint=lambda step, loss: print(f"{run.folder.name}: step {step}, loss {loss:.4f}", flush=True),
        stop=lambda: run.step == until,
    )  # fmt: skip
    if len(times) > 1:
        seconds = median(b - a for a, b in pairwise(times))
        (run.folder / "seconds_per_step").write_text(f"{seconds:.4f}", encoding="ascii")


def fork(run: UNetRun, plan: Plan, out: Path) -> None:
    """The run of a shorter plan at the step of `run`, where the two are still the same: no rate has decayed yet."""
    folder = out / plan.name
    if not state.state_file(folder).exists():
        state.save(replace(run, folder=folder, config=replace(run.config, steps=plan.steps)), keep=1)
        shutil.copyfile(run.folder / "metrics.csv", folder / "metrics.csv")


def train_plan(lab: Lab, plan: Plan, shorter: list[Plan]) -> UNetRun:
    """Train a plan to its end, and leave each of the shorter ones, of the same seed and data, at its half."""
    dataset, validation = lab.datasets(plan.data)
    run = lab.open(plan, dataset)
    compile_for_training(run, dataset)
    for other in sorted(shorter, key=lambda other: other.steps):
        if run.step < (half := other.steps // 2):
            train(run, dataset, validation, half)
            fork(run, other, lab.out)
    train(run, dataset, validation)
    return run


def distance(run: UNetRun, lab: Lab, n: int = IMAGES) -> dict[str, float]:
    """The speedrun's figures of n samples against its selection images; the noise is the same for all runs.

    half: the distance of every second sample, for the bias of few samples, which is proportional to 1 / n.
    """
    classes = lab.splits.train.classes
    labels = np.arange(n) * len(classes) // n
    images = sample_images(run, labels, seed=0)

    def figures_of(some: slice) -> dict[str, Any]:
        classified = lab.classifier.classify(images[some])
        return report.feature_figures(classified, lab.reference, labels[some], classes, 0)

    figures, half = figures_of(slice(None)), figures_of(slice(None, None, 2))
    kept = {name: round(figures[name], 4) for name in ("frechet", "precision", "recall")}
    return kept | {"half": round(half["frechet"], 4), "samples": n}


def row(run: UNetRun, plan: Plan, lab: Lab) -> dict[str, Any]:
    """The ledger's row of a finished run."""
    return {
        "name": plan.name,
        "role": next(role for role, plans in ROLES.items() if plan in plans),
        **asdict(plan),
        "parameters": run.optimizer.p.size,
        "fingerprint": run.config.fingerprint,
        "seconds_per_step": float((run.folder / "seconds_per_step").read_text(encoding="ascii")),
        "distance": distance(run, lab) if plan.data == "cifar10" else None,
        "losses": [round(loss, 4) for loss in read_log(run.folder / "metrics.csv")[1]],
    }


def main(
    cifar10: Annotated[str, typer.Argument(help="CIFAR-10's training set, as for the speedrun.")],
    fashion: Annotated[str, typer.Argument(help="The folder of Fashion-MNIST.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs.")],
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    ledger: Annotated[Path, typer.Option(help="File that the rows are appended to.")] = LEDGER,
) -> None:
    """Train and measure every run that the ledger lacks."""
    machine.use_threads(threads, "numba")
    lab = Lab(out, {"cifar10": cifar10, "fashion_mnist": fashion, "cats_dogs": "cats_dogs"}, threads)
    lines = ledger.read_text(encoding="utf-8").splitlines() if ledger.exists() else []
    done = {json.loads(line)["name"] for line in lines}
    for plan in GRID + VARIED + HELD_OUT:
        if plan.name in done:
            continue
        shorter = [o for o in GRID if plan in GRID and o.width == plan.width and o.steps < plan.steps]
        run = train_plan(lab, plan, shorter)
        found = row(run, plan, lab)
        with ledger.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        print(plan.name, found["distance"], flush=True)


if __name__ == "__main__":
    try:
        typer.run(main)
    except MinidiffError as error:
        print(f"minidiff: {error}", file=sys.stderr)
        sys.exit(2)
