"""What training launches, for compilation ahead: one step of a copy of the run."""

import numpy as np

from minidiff.compilation import compile_ahead
from minidiff.data.dataset import Dataset
from minidiff.training.run import Run


def compile_for_training(run: Run, dataset: Dataset) -> None:
    """Compile the kernels that a training step of the run launches."""
    compile_ahead(run.config.backend, lambda: _train_a_copy(run, dataset))


def _train_a_copy(run: Run, dataset: Dataset) -> None:
    """One step of a run of the same kind and configuration, whose weights are zero."""
    parts = run.parts_of(run.folder, run.config, run.metadata())
    copy = run.build(run.folder, run.config, *parts, rng=None)
    copy.train_batch(copy.batches(dataset)(run.step + 1), np.random.default_rng(0))
    copy.optimizer.zero_grad()  # the arbitrary gradients may not be finite, and then a step launches less
    copy.optimizer.step()
