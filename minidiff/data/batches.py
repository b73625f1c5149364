"""The batch of a step: order, flips, shifts, scaling to [-1, 1], label dropout.

A batch is a function of (seed, step) alone, so a resumed run needs no position in the data, and batches can be
prefetched or computed again.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import numpy as np

from minidiff.data.dataset import Dataset
from minidiff.data.imaging import to_float

ORDER, FLIPS, LABELS, SHIFTS = 1, 2, 3, 4  # the last part of a generator's seed: one stream for each purpose
PREFETCHED = 2  # batches computed ahead

Batch = TypeVar("Batch")


def batch(
    dataset: Dataset, step: int, batch_size: int, seed: int, flip: bool = True, pad_crop: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The images of a step (1, 2, ...): x0 (B, H, W, C) float32 in [-1, 1], and their labels (B,) int64.

    The batches run through one permutation of the dataset after another: each epoch has every image once, and an epoch
    may end within a batch. With `flip`, each image is flipped left to right with probability 1/2. With `pad_crop`, each
    is then shifted by up to that many pixels (`shift`).
    """
    index = batch_indices(len(dataset), step, batch_size, seed)  # (B,)
    images = dataset.take(index)  # (B, H, W, C)
    if flip:
        flipped = np.random.default_rng([seed, step, FLIPS]).integers(2, size=(batch_size, 1, 1, 1))
        images = np.where(flipped, images[:, :, ::-1], images)
    if pad_crop:
        images = shift(images, pad_crop, np.random.default_rng([seed, step, SHIFTS]))
    return to_float(images), dataset.labels[index]


def batch_indices(n: int, step: int, batch_size: int, seed: int) -> np.ndarray:
    """The indices, of n images, in a step's batch: (B,)."""
    epochs, places = np.divmod(np.arange((step - 1) * batch_size, step * batch_size), n)
    return np.concatenate(
        [_order(n, seed, epoch)[places[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)]
    )


def evenly_spaced(n: int, most: int) -> np.ndarray:
    """At most `most` indices spread evenly over n images, which may be sorted by class: (min(n, most),)."""
    return np.linspace(0, n - 1, min(n, most)).astype(int)


def shift(images: np.ndarray, padding: int, rng: np.random.Generator) -> np.ndarray:
    """Pad images (B, H, W, C) by `padding` < H, W pixels on all sides, and crop each to (H, W) at a random place.

    The padding reflects the image: the model would learn and sample black borders.
    """
    B, H, W, _ = images.shape
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), "reflect")
    crops = np.lib.stride_tricks.sliding_window_view(
        padded, (H, W), (1, 2)
    )  # (B, 2 padding + 1, 2 padding + 1, C, H, W)
    down, right = rng.integers(2 * padding + 1, size=(2, B))
    return np.ascontiguousarray(np.moveaxis(crops[np.arange(B), down, right], 1, -1))  # (B, H, W, C)


def drop_labels(labels: np.ndarray, null: int | np.ndarray, probability: float, seed: int, step: int) -> np.ndarray:
    """The labels of a step, each replaced by the null class with this probability (Ho & Salimans 2022, algorithm 1).

    labels are (B,), or (B, T) token ids; null (T,) is then the token ids of the empty text.
    """
    dropped = np.random.default_rng([seed, step, LABELS]).random(len(labels)) < probability
    return np.where(dropped.reshape(-1, *[1] * (labels.ndim - 1)), null, labels)


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    """An epoch's permutation of 0 ... n-1; a batch needs two where one epoch ends and the next begins."""
    return np.random.default_rng([seed, epoch, ORDER]).permutation(n)


def prefetch(make_batch: Callable[[int], Batch], steps: Iterable[int]) -> Generator[Batch]:
    """Yield make_batch(step) for each step, in order, computed up to two steps ahead in one other thread.

    make_batch runs NumPy and Pillow only: Numba's workqueue threading layer aborts if a second thread launches kernels.
    Its exceptions are raised at the step where they arose. A consumer that stops early waits only for the batch that is
    being computed.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    ahead = deque()
    try:
        for step in steps:
            ahead.append(pool.submit(make_batch, step))
            if len(ahead) > PREFETCHED:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
