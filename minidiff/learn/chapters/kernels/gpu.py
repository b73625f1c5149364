"""Exercises of chapter 18: the memory transactions and the bank conflicts of a warp."""

from typing import Any

import numpy as np

from minidiff.learn.exercise import Exercise

LANES = np.arange(32)  # of a warp
SECTOR = 8  # words of four bytes: 32 bytes
BANKS = 32


def sectors(words: np.ndarray) -> int:
    """The number of 32-byte sectors of global memory that one load of a warp fetches.

    words  index of the float32 that each lane reads, int (32,); array element 0 is at the beginning of a sector

    A sector is fetched once, however many lanes read from it. Returns an int from 1 to 32.
    """
    return len(np.unique(words // SECTOR))


def _every_lane(words: np.ndarray) -> int:
    """Every lane counts: lanes that read from one sector share one fetch."""
    return len(words)


def _distinct_words(words: np.ndarray) -> int:
    """It counts distinct words: eight neighbouring words lie in one sector."""
    return len(np.unique(words))


def _lines(words: np.ndarray) -> int:
    """It counts cache lines of 128 bytes: of a line only those of its four sectors that are needed are fetched."""
    return len(np.unique(words // BANKS))


def _range(words: np.ndarray) -> int:
    """It counts all sectors from the lowest to the highest address; those between them that no lane reads stay."""
    return int(words.max() // SECTOR - words.min() // SECTOR + 1)


def _unaligned(words: np.ndarray) -> int:
    """The sectors are counted from the first lane's word: they begin at fixed addresses, every 32 bytes of memory."""
    return len(np.unique((words - words.min()) // SECTOR))


def bank_conflict(words: np.ndarray) -> int:
    """How many times shared memory must be accessed for one load of a warp: 1 if there is no bank conflict.

    words  index of the float32 that each lane reads, int (32,)

    Word i is in bank i mod 32. In one access, each bank gives one word, to all lanes that want it. Returns the largest
    number of different words that lie in one bank.
    """
    return int(np.bincount(np.unique(words) % BANKS).max())


def _no_broadcast(words: np.ndarray) -> int:
    """It counts the lanes of a bank: lanes that read the same word of it get it in one access."""
    return int(np.bincount(words % BANKS).max())


def _banks_used(words: np.ndarray) -> int:
    """It counts the banks that are used: banks work at the same time, count the words in the busiest one."""
    return len(np.unique(words % BANKS))


def _consecutive(words: np.ndarray) -> int:
    """It takes 32 consecutive words for a bank: consecutive words are in different banks, word i in bank i mod 32."""
    return int(np.bincount(np.unique(words) // BANKS).max())


def _byte_banks(words: np.ndarray) -> int:
    """The index of a word is not the address of a byte: do not divide it by 4, nor multiply."""
    return int(np.bincount(np.unique(words) // 4 % BANKS).max())


def _mean_over_banks(words: np.ndarray) -> int:
    """It divides the words by the banks: all wait for the busiest bank, so the maximum counts, not the mean."""
    distinct = np.unique(words)
    return -(-len(distinct) // len(np.unique(distinct % BANKS)))


def _global_patterns(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    scattered = rng.permutation(4096)[:32]
    patterns = (LANES, LANES + 5, 2 * LANES, 64 * LANES, LANES // 16 * 64 + LANES % 16, 0 * LANES + 7, scattered)
    return [(pattern,) for pattern in patterns]


def _shared_patterns(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    uneven = np.concatenate([np.arange(28), 32 * np.arange(1, 5)])  # four words more in bank 0
    scattered = rng.permutation(1024)[:32]
    patterns = (LANES, 2 * LANES, 32 * LANES, 33 * LANES, LANES // 8, LANES // 16 * 68 + LANES % 16, uneven, scattered)
    return [(pattern,) for pattern in patterns]


EXERCISES = (
    Exercise(
        "Memory transactions of a warp",
        18,
        sectors,
        _global_patterns,
        (_every_lane, _distinct_words, _lines, _range, _unaligned),
    ),
    Exercise(
        "Bank conflicts",
        18,
        bank_conflict,
        _shared_patterns,
        (_no_broadcast, _banks_used, _consecutive, _byte_banks, _mean_over_banks),
    ),
)
