"""How good a checkpoint is, as a number that can be compared over time.

The loss of a step is another at every t, and jumps. This one is of the averaged weights, on pictures, times and
noise that are always the same, so that what differs between two of them is the network.
"""

import numpy as np

from minidiff.data.batches import evenly_spaced
from minidiff.data.dataset import Dataset
from minidiff.engine.tensor import no_grad
from minidiff.training.run import Run

IMAGES = 256  # at most
PROBE = 5  # the last word of a generator's seed, after those of data/batches.py


def validation_loss(run: Run, dataset: Dataset) -> float:
    """What `Run.probe` says of the averaged weights on pictures from all of the set."""
    with no_grad(), run.optimizer.averaged():
        return run.validation_loss(
            dataset, evenly_spaced(len(dataset), IMAGES), np.random.default_rng([run.config.seed, 0, PROBE])
        )
