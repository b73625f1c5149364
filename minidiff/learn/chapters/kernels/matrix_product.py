"""Exercises of chapter 15: a fast matrix product."""

from typing import Any

import numpy as np

from minidiff.learn.exercise import Exercise

Array = np.ndarray


def best_tile(registers: int, latency: int, per_cycle: int) -> tuple[int, int]:
    """The register tile, R rows by V vectors of C, with the fewest loads per fused multiply-add (FMA).

    registers  number of vector registers
    latency    cycles from the start of an FMA until its result can be used
    per_cycle  vector FMAs that the processor starts in a cycle

    A tile keeps R V sums, V vectors of a row of B and one broadcast element of A in registers; they must fit. Each sum
    is added to once a term, so R V must be at least latency per_cycle, or the units wait for results. A term takes
    R + V loads for R V FMAs. Of several best tiles take the one with fewer registers, then that with fewer vectors.

    Returns (R, V).
    """
    return _best(registers, latency * per_cycle, lambda R, V: R * V + V + 1)


def _best(registers: int, least_sums: int, needed: Any) -> tuple[int, int]:
    """The tile of fewest loads that needs at most so many registers and has at least so many sums."""
    sides = range(1, registers + 1)
    tiles = [(R, V) for R in sides for V in sides if needed(R, V) <= registers and R * V >= least_sums]
    return min(tiles, key=lambda tile: (sum(tile) / (tile[0] * tile[1]), needed(*tile), tile[1]))


def _sums_alone(registers: int, latency: int, per_cycle: int) -> tuple[int, int]:
    """Only the sums have registers here: V vectors of B and the broadcast element of A need some too."""
    return _best(registers, latency * per_cycle, lambda R, V: R * V)


def _ignores_latency(registers: int, latency: int, per_cycle: int) -> tuple[int, int]:
    """The tile may have too few sums: with fewer than latency per_cycle, the units wait for results."""
    return _best(registers, 1, lambda R, V: R * V + V + 1)


def _one_unit(registers: int, latency: int, per_cycle: int) -> tuple[int, int]:
    """R V is at least the latency here, which suffices for one FMA a cycle: multiply by per_cycle."""
    return _best(registers, latency, lambda R, V: R * V + V + 1)


def _most_sums(registers: int, latency: int, per_cycle: int) -> tuple[int, int]:
    """The tile has the most sums, not the fewest loads per FMA: a tile that is nearly a square needs fewer."""
    sides = range(1, registers + 1)
    tiles = [(R, V) for R in sides for V in sides if R * V + V + 1 <= registers]
    return max(tiles, key=lambda tile: (tile[0] * tile[1], -tile[1]))


def _vectors_first(registers: int, latency: int, per_cycle: int) -> tuple[int, int]:
    """The order is (V, R): return the rows first."""
    R, V = best_tile(registers, latency, per_cycle)
    return V, R


def _processors(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    return [(32, 4, 2), (16, 4, 2), (8, 3, 2), (8, 6, 1), (int(rng.integers(24, 64)), 4, 1)]


def tiled_product(a: np.ndarray, b: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, int]:
    """C = A B in tiles of rows x columns, as a register tile computes it, and the number of values loaded.

    a  (M, K)
    b  (K, N)

    The sums of a tile start at 0. Each term k loads the tile's elements of column k of A and its elements of row k of
    B once, and adds all their products to the sums. Tiles at the lower and right border are smaller if rows does not
    divide M, or columns does not divide N.

    Returns C (M, N), and the number of elements of A and B that all tiles load together, an integer.
    """
    (M, K), N = a.shape, b.shape[1]
    c, loads = np.zeros((M, N)), 0
    for i in range(0, M, rows):
        for j in range(0, N, columns):
            left, right = a[i : i + rows], b[:, j : j + columns]
            sums = np.zeros((len(left), right.shape[1]))
            for k in range(K):
                sums += np.outer(left[:, k], right[k])
                loads += len(left) + right.shape[1]
            c[i : i + rows, j : j + columns] = sums
    return c, loads


def _whole_tiles(a: Array, b: Array, rows: int, columns: int) -> tuple[Array, int]:
    """The border is missing: where a whole tile does not fit, a smaller one does."""
    M, N = len(a) // rows * rows, b.shape[1] // columns * columns
    part, loads = tiled_product(a[:M], b[:, :N], rows, columns)
    c = np.zeros((len(a), b.shape[1]))
    c[:M, :N] = part
    return c, loads


def _last_term(a: Array, b: Array, rows: int, columns: int) -> tuple[Array, int]:
    """Only the last term is left: add each term to the sums."""
    return np.outer(a[:, -1], b[-1]), tiled_product(a, b, rows, columns)[1]


def _loads_per_product(a: Array, b: Array, rows: int, columns: int) -> tuple[Array, int]:
    """Two loads are counted for every product: a loaded element serves a whole row or column of the tile."""
    return tiled_product(a, b, rows, columns)[0], 2 * a.size * b.shape[1]


def _one_tile(a: Array, b: Array, rows: int, columns: int) -> tuple[Array, int]:
    """Each element is counted once: every tile of a column of tiles loads its elements of B again, and so for A."""
    return tiled_product(a, b, rows, columns)[0], a.size + b.size


def _border_as_whole(a: Array, b: Array, rows: int, columns: int) -> tuple[Array, int]:
    """The tiles at the border are counted as whole ones: they load fewer elements."""
    tiles = -(-len(a) // rows) * -(-b.shape[1] // columns)
    return tiled_product(a, b, rows, columns)[0], tiles * a.shape[1] * (rows + columns)


def _factors(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    return [
        (rng.standard_normal((M, K)), rng.standard_normal((K, N)), rows, columns)
        for M, K, N, rows, columns in ((8, 5, 12, 4, 6), (7, 6, 11, 4, 3), (9, 3, 10, 2, 8))
    ]


EXERCISES = (
    Exercise(
        "Register tile",
        15,
        best_tile,
        _processors,
        (_sums_alone, _ignores_latency, _one_unit, _most_sums, _vectors_first),
    ),
    Exercise(
        "Matrix product in tiles",
        15,
        tiled_product,
        _factors,
        (_whole_tiles, _last_term, _loads_per_product, _one_tile, _border_as_whole),
    ),
)
