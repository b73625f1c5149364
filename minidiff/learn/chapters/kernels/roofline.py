"""Exercises of chapter 14: the roofline."""

from math import prod
from typing import Any

import numpy as np

from minidiff.learn.exercise import Exercise

Shape = tuple[int, ...]
Array = np.ndarray


def arithmetic_intensity(x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> float:
    """The arithmetic intensity of a convolution with stride 1 that keeps the size, in FLOP per byte.

    x_shape  (N, H, W, C)
    w_shape  (O, K, K, C): one output value is a sum of K K C products

    A multiply-add counts as two operations. From memory x and w are read once, and y, (N, H, W, O), is written once;
    all are float32, 4 bytes each. A 1x1 convolution is a matrix product with N H W rows.
    """
    return _operations(x_shape, w_shape) / (4 * (prod(x_shape) + prod(w_shape) + _outputs(x_shape, w_shape)))


def _outputs(x_shape: Shape, w_shape: Shape) -> int:
    return prod(x_shape[:3]) * w_shape[0]


def _operations(x_shape: Shape, w_shape: Shape) -> int:
    return 2 * _outputs(x_shape, w_shape) * prod(w_shape[1:])


def _multiply_adds(x_shape: Shape, w_shape: Shape) -> float:
    """A multiply-add counts as one: it is two operations, a multiplication and an addition."""
    return arithmetic_intensity(x_shape, w_shape) / 2


def _per_value(x_shape: Shape, w_shape: Shape) -> float:
    """The intensity is per value: a float32 has 4 bytes."""
    return arithmetic_intensity(x_shape, w_shape) * 4


def _patches(x_shape: Shape, w_shape: Shape) -> float:
    """x is counted once for each tap of the kernel: at best it is read once, and the other taps find it in cache."""
    values = prod(w_shape[1:3]) * prod(x_shape) + prod(w_shape) + _outputs(x_shape, w_shape)
    return _operations(x_shape, w_shape) / (4 * values)


def _without_weight(x_shape: Shape, w_shape: Shape) -> float:
    """The bytes of w are missing: small images with many channels are mostly weights."""
    return _operations(x_shape, w_shape) / (4 * (prod(x_shape) + _outputs(x_shape, w_shape)))


def _without_output(x_shape: Shape, w_shape: Shape) -> float:
    """The bytes of y are missing: it is written to memory."""
    return _operations(x_shape, w_shape) / (4 * (prod(x_shape) + prod(w_shape)))


def _shapes(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    N, side, C, O = (int(n) for n in rng.integers(2, 9, 4) * (1, 4, 8, 8))
    return [((N, side, side, C), (O, 3, 3, C)), ((N, side, side, C), (O, 1, 1, C)), ((1, 8, 8, 512), (256, 3, 3, 512))]


def bound_and_speedup(
    flop: np.ndarray, moved: np.ndarray, seconds: np.ndarray, peak: float, bandwidth: float
) -> tuple[np.ndarray, np.ndarray]:
    """The roofline's bound of each operation of a step, and what the step would gain from reaching it.

    flop, moved, seconds  of each operation: its FLOP, the bytes that it reads and writes, the time it takes; (n,) each
    peak, bandwidth       FLOP per second and bytes per second of the machine, numbers

    Arithmetic and memory traffic overlap, so an operation takes at least as long as the slower of both. Returns

    bound    the least seconds of each operation, (n,)
    speedup  the time of the whole step, divided by its time if this operation alone took its bound, (n,)
    """
    bound = np.maximum(flop / peak, moved / bandwidth)
    return bound, seconds.sum() / (seconds.sum() - seconds + bound)


def _one_after_the_other(
    flop: Array, moved: Array, seconds: Array, peak: float, bandwidth: float
) -> tuple[Array, Array]:
    """Both times are added: arithmetic and memory traffic overlap, so the bound is the larger of both."""
    bound = flop / peak + moved / bandwidth
    return bound, seconds.sum() / (seconds.sum() - seconds + bound)


def _faster_of_both(flop: Array, moved: Array, seconds: Array, peak: float, bandwidth: float) -> tuple[Array, Array]:
    """The smaller of both times is taken: an operation has to wait for the slower one."""
    bound = np.minimum(flop / peak, moved / bandwidth)
    return bound, seconds.sum() / (seconds.sum() - seconds + bound)


def _own_speedup(flop: Array, moved: Array, seconds: Array, peak: float, bandwidth: float) -> tuple[Array, Array]:
    """The speedup is the operation's own: that of the step is smaller, since all the others stay as they are."""
    bound, _ = bound_and_speedup(flop, moved, seconds, peak, bandwidth)
    return bound, seconds / bound


def _part_saved(flop: Array, moved: Array, seconds: Array, peak: float, bandwidth: float) -> tuple[Array, Array]:
    """The speedup is the part of the time that is saved: divide the old time of the step by the new one."""
    bound, _ = bound_and_speedup(flop, moved, seconds, peak, bandwidth)
    return bound, (seconds - bound) / seconds.sum()


def _steps(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    found = []
    for n in (4, 7):
        flop, moved = 10 ** rng.uniform(6, 10, n), 10 ** rng.uniform(6, 9, n)
        peak, bandwidth = rng.uniform(50, 200) * 1e9, rng.uniform(10, 40) * 1e9
        seconds = np.maximum(flop / peak, moved / bandwidth) * rng.uniform(1.2, 5, n)
        found.append((flop, moved, seconds, float(peak), float(bandwidth)))
    return found


EXERCISES = (
    Exercise(
        "Arithmetic intensity",
        14,
        arithmetic_intensity,
        _shapes,
        (_multiply_adds, _per_value, _patches, _without_weight, _without_output),
    ),
    Exercise(
        "Bound and speedup",
        14,
        bound_and_speedup,
        _steps,
        (_one_after_the_other, _faster_of_both, _own_speedup, _part_saved),
    ),
)
