"""How good a checkpoint is, as a number that can be compared over time.

The loss of a step is another at every t, and jumps. This one is of the averaged weights, on pictures, times and
noise that are always the same, so that what differs between two of them is the network.
"""

import numpy as np

from minidiff.data.dataset import Dataset
from minidiff.data.pictures import to_float
from minidiff.diffusion.loss import min_snr_weight, training_loss
from minidiff.engine.tensor import no_grad
from minidiff.runs.state import Run

PICTURES = 256  # at most
PROBE = 5  # the last word of a generator's seed, after those of data/batches.py


def probe(run: Run, dataset: Dataset) -> float:
    """The training loss (DDPM eq. 14, weighted as the run's) over pictures from all of the set, without dropout.

    They pass in parts no larger than those of a training step, which memory suffices for.
    """
    n, config = min(PICTURES, len(dataset)), run.config
    index = np.linspace(0, len(dataset) - 1, n).astype(int)  # sets may be sorted by class
    x0 = to_float(dataset.take(index))  # (n, H, W, C)
    rng = np.random.default_rng([config.seed, 0, PROBE])
    t, eps = run.schedule.draw(rng, n), rng.standard_normal(x0.shape, dtype=np.float32)
    labels = dataset.labels[index] if config.classes else None
    weight = None if config.min_snr is None else min_snr_weight(run.schedule, t, config.min_snr)
    total, size = 0.0, config.batch_size // config.accumulate
    with no_grad(), run.optimizer.averaged():
        for part in (slice(start, min(start + size, n)) for start in range(0, n, size)):
            cond, weights = (None if a is None else a[part] for a in (labels, weight))
            loss = training_loss(run.model, run.schedule, x0[part], t[part], eps[part], cond, weight=weights)
            total += float(loss.numpy()) * (part.stop - part.start)
    return total / n
