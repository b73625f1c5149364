"""The solutions of chapter 18 give what is known of simple patterns of addresses."""

import numpy as np
import pytest

from minidiff.learn.chapters.kernels import gpu as chapter

LANES = np.arange(32)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 7, 8, 9, 64])
def test_sectors_of_a_stride(stride):
    """Up to a stride of 8 every sector from the first to the last is needed, above it each lane has its own."""
    assert chapter.sectors(stride * LANES) == min((31 * stride) // 8 + 1, 32)


@pytest.mark.parametrize(("offset", "want"), [(0, 4), (1, 5), (7, 5), (8, 4)])
def test_an_offset_costs_a_sector(offset, want):
    assert chapter.sectors(LANES + offset) == want


@pytest.mark.parametrize("stride", range(1, 66))
def test_bank_conflicts_of_a_stride(stride):
    """Lanes i and j share a bank if 32 divides stride (i - j): gcd(stride, 32) lanes each."""
    assert chapter.bank_conflict(stride * LANES) == np.gcd(stride, 32)


def test_one_word_for_all_lanes():
    assert chapter.sectors(0 * LANES) == chapter.bank_conflict(0 * LANES) == 1
