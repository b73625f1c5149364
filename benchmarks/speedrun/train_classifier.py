"""Trains the track's feature classifier, once: python benchmarks/speedrun/train_classifier.py DATA.

Its weights are committed and never trained again, so that all scores are of one feature space. AdamW on cross-entropy
with random flips and shifts; the moving average of the weights is stored as float16.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from splits import CLASSES, SHAPE, WEIGHTS, WIDTHS, Splits, open_classifier, open_splits

from minidiff import machine
from minidiff.data.batches import batch, prefetch
from minidiff.data.dataset import Dataset, blocks
from minidiff.engine.losses import cross_entropy
from minidiff.engine.optim import AdamW, learning_rate
from minidiff.formats.weights import write_safetensors
from minidiff.models.classifier import Classifier

BATCH_SIZE, LR, SEED = 128, 2e-3, 0
SHIFT = 4  # pixels at most
CHECK_EVERY = 500  # steps between two measurements of the accuracy


def train(splits: Splits, steps: int, path: Path) -> float:
    """Train for that many steps; writes the averaged weights every CHECK_EVERY steps. Returns the last accuracy."""
    classifier = Classifier(SHAPE[2], CLASSES, np.random.default_rng(SEED), "numba", WIDTHS)
    optimizer = AdamW(classifier.parameters(), LR, weight_decay=0.05, clip=1.0, ema=0.998)
    batches = prefetch(lambda step: batch(splits.train, step, BATCH_SIZE, SEED, True, SHIFT), range(1, steps + 1))
    accuracy = 0.0
    for step, (x, labels) in enumerate(batches, start=1):
        optimizer.lr = learning_rate(LR, step, steps, warmup=300, decay_from=0.1)
        optimizer.zero_grad()
        loss = cross_entropy(classifier(x), labels)
        loss.backward()
        optimizer.step()
        if step % CHECK_EVERY == 0 or step == steps:
            with optimizer.averaged():
                accuracy = store(classifier, splits, path)
            print(f"step {step}: loss {float(loss.numpy()):.3f}, accuracy {accuracy:.4f}", flush=True)
    return accuracy


def store(classifier: Classifier, splits: Splits, path: Path) -> float:
    """Write the weights as float16, with their accuracy on the selection images, which is returned."""
    weights = {name: a.astype(np.float16) for name, a in classifier.state_dict().items()}
    write_safetensors(path, weights, {"accuracy": "0", "tested": str(len(splits.selection))})
    accuracy = accuracy_on(splits.selection, path)
    write_safetensors(path, weights, {"accuracy": repr(accuracy), "tested": str(len(splits.selection))})
    return accuracy


def accuracy_on(dataset: Dataset, path: Path) -> float:
    """The fraction of a dataset's images that the stored classifier assigns to their class."""
    stored = open_classifier(dataset, path=path)
    predictions = np.concatenate([stored.classify(images).predictions for images in blocks(dataset)])
    return float((predictions == dataset.labels).mean())


def main(
    data: Annotated[str, typer.Argument(help="CIFAR-10's training set.")],
    out: Annotated[Path, typer.Option(help="File of the weights.")] = WEIGHTS,
    steps: Annotated[int, typer.Option(help="Number of steps.")] = 6000,
    threads: Annotated[int | None, typer.Option(help="CPU threads.  [default: one per core]")] = None,
) -> None:
    """Train the feature classifier; prints its accuracy on the selection images."""
    machine.use_threads(threads, "numba")
    train(open_splits(data), steps, out)


if __name__ == "__main__":
    typer.run(main)
