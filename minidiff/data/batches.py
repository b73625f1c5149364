"""Which pictures a step sees: order, flips, shifts, [-1, 1]. Randomness by step, not by state.

A step's batch follows from (seed, step) alone, so a resumed run needs no position in the data, and a batch
may be made early, late, or twice.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import numpy as np

from minidiff.data.dataset import Dataset
from minidiff.data.imaging import to_float

ORDER, FLIPS, LABELS, SHIFTS = 1, 2, 3, 4  # the last word of a generator's seed: one stream for each purpose
PREFETCHED = 2  # batches that are made before they are asked for

Batch = TypeVar("Batch")


def batch(
    dataset: Dataset, step: int, batch_size: int, seed: int, flip: bool = True, pad_crop: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of a step (1, 2, ...) -> x0 (B, H, W, C) float32 in [-1, 1], labels (B,) int64.

    Laid end to end, the batches run through one permutation of the set after another: each epoch has every
    picture once, and an epoch may end within a batch. With `flip`, each picture is mirrored left to right
    with probability 1/2. With `pad_crop`, each is then shifted by up to so many pixels (`shift`).
    """
    index = batch_indices(len(dataset), step, batch_size, seed)  # (B,)
    images = dataset.take(index)  # (B, H, W, C)
    if flip:
        mirrored = np.random.default_rng([seed, step, FLIPS]).integers(2, size=(batch_size, 1, 1, 1))
        images = np.where(mirrored, images[:, :, ::-1], images)
    if pad_crop:
        images = shift(images, pad_crop, np.random.default_rng([seed, step, SHIFTS]))
    return to_float(images), dataset.labels[index]


def batch_indices(n: int, step: int, batch_size: int, seed: int) -> np.ndarray:
    """Which of n pictures a step's batch holds, in order: (B,)."""
    epochs, places = np.divmod(np.arange((step - 1) * batch_size, step * batch_size), n)
    return np.concatenate(
        [_order(n, seed, epoch)[places[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)]
    )


def evenly_spaced(n: int, most: int) -> np.ndarray:
    """At most so many of n pictures, from all of the set, which may be sorted: (min(n, most),) numbers."""
    return np.linspace(0, n - 1, min(n, most)).astype(int)


def shift(images: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Pad pictures (B, H, W, C) by `most` < H, W pixels on all sides, and crop each to (H, W) at a place of its own.

    The padding mirrors what is inside: black borders would be learnt, and drawn.
    """
    B, H, W, _ = images.shape
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), "reflect")
    crops = np.lib.stride_tricks.sliding_window_view(padded, (H, W), (1, 2))  # (B, 2 most + 1, 2 most + 1, C, H, W)
    down, right = rng.integers(2 * most + 1, size=(2, B))
    return np.ascontiguousarray(np.moveaxis(crops[np.arange(B), down, right], 1, -1))  # (B, H, W, C)


def drop_labels(labels: np.ndarray, null: int | np.ndarray, share: float, seed: int, step: int) -> np.ndarray:
    """The labels of a step, about a `share` of them replaced by the null class (Ho & Salimans, algorithm 1).

    labels are (B,), or (B, T) tokens; then null (T,) are those of the empty text.
    """
    dropped = np.random.default_rng([seed, step, LABELS]).random(len(labels)) < share
    return np.where(dropped.reshape(-1, *[1] * (labels.ndim - 1)), null, labels)


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    """An epoch's permutation of 0 ... n-1; a batch needs two where one epoch ends and the next begins."""
    return np.random.default_rng([seed, epoch, ORDER]).permutation(n)


def prefetch(make_batch: Callable[[int], Batch], steps: Iterable[int]) -> Generator[Batch]:
    """Yields make_batch(step) for each step, in order, made up to two steps ahead in one other thread.

    make_batch is to run NumPy and Pillow only: Numba's threading layer allows no second thread that launches
    kernels. Its exceptions reach the consumer at the step where they arose. A consumer that stops early
    waits for the batch in the making, no longer.
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
