"""Attention with factors in bfloat16: queries, keys, values and probabilities; scores, softmax and sums are float32.

The order of computation is attention.py's: a block of queries and a block of keys of one head at a time, a query in
each lane. Keys are rounded to rows of pairs, values to pairs of two keys, in panels (product_bf16.py). Probabilities of
two keys are rounded to one vector of pairs as they are computed; their sum is of those before rounding.

Gradients are in float32.

Accelerates reference/bfloat16.py.
"""

import numpy as np
from numba import get_num_threads, prange
from numba.np.ufunc.parallel import get_thread_id

from .attention import (
    KEYS,
    MASKED,
    QUERIES,
    _mask_later_keys,
    _maximum,
    _no_nan,
    _normalise,
    _rows_of,
    _scale,
    _start,
    attention_backward,
)
from .bfloat16 import exp2, round_pairs
from .half_bf16 import round_row
from .jit import helper, kernel
from .memory import empty, scratch
from .product import ROWS
from .product_bf16 import product_of_panels, product_of_rows
from .simd import LANES, clear, copy, load, round_up, store, transpose_from_panels, transpose_to_panels, zeros

LOG2_E = np.float32(1 / np.log(2))

__all__ = ["attention", "attention_backward"]


def attention(q, k, v, causal=False):
    """o (N, T, heads, D) and lse (N, heads, T); causal: query t attends to keys 0 ... t."""
    (N, T, heads, D), S = q.shape, k.shape[1]
    o, lse = empty(q.shape), empty((N, heads, T))
    keys, pairs, block = round_up(S, ROWS), -(-D // 2), round_up(min(S, KEYS), ROWS)
    row, width = pairs + LANES, round_up(D)  # of keys and queries; of values and outputs
    sizes = [keys * row, keys // 2 * width, QUERIES * row, QUERIES * pairs, QUERIES * width, QUERIES * block]
    offsets, memory = scratch([*sizes, QUERIES, QUERIES])
    d = np.arange(width)
    rows = np.arange(keys) * row, d // LANES * (keys // 2 * LANES) + d % LANES, np.arange(max(width, block)) * LANES
    parts = min(-(-get_num_threads() // (N * heads)), -(-T // QUERIES))
    skip = causal and T > QUERIES and _no_nan(v)
    arrays = tuple(a.reshape(-1) for a in (q, k, v, o, lse))
    constants = np.zeros(QUERIES, np.float32), np.zeros(block, np.int64), np.arange(keys // 2) * LANES
    _forward(
        arrays, (N, T, S, heads, D, parts), (row, width, keys, block), offsets, memory, rows, constants, (causal, skip)
    )
    return o, lse


@helper
def _pack_values(v, s, row, rows, D, to, t, width, panel):
    """Round rows of D floats, row apart, to pairs of two rows in panels (D / LANES, rows / 2, LANES), panel apart.

    width: D in whole vectors.
    """
    even, odd = np.zeros(width, np.float32), np.zeros(width, np.float32)
    for r in range(0, rows, 2):
        copy(even, 0, v, s + r * row, D)
        if r + 1 < rows:
            copy(odd, 0, v, s + (r + 1) * row, D)
        else:
            clear(odd, 0, D)
        for d in range(0, D, LANES):
            store(to, t + d // LANES * panel + r // 2 * LANES, round_pairs(load(even, d), load(odd, d)))


@helper
def _softmax(a, at, keys, scale, row_max, row_sum):
    """For LANES queries, scores (keys, LANES) at a[at] -> 2^(scale (s - max)) as pairs (keys / 2, LANES), there too.

    row_max and row_sum are the places in a of max and of the sum over all keys so far. Returns the factor by which the
    sum over the keys before was multiplied, since max has grown.
    """
    before = load(a, row_max)
    largest = _maximum(a, at, keys, before)
    total, shift = zeros(), largest * scale
    for s in range(keys // 2):
        even = exp2(load(a, at + 2 * s * LANES) * scale - shift)
        odd = exp2(load(a, at + (2 * s + 1) * LANES) * scale - shift)
        store(a, at + s * LANES, round_pairs(even, odd))
        total = total + (even + odd)
    if keys % 2:
        last = exp2(load(a, at + (keys - 1) * LANES) * scale - shift)
        store(a, at + keys // 2 * LANES, round_pairs(last, zeros()))
        total = total + last
    factor = exp2(before * scale - shift)
    store(a, row_max, largest)
    store(a, row_sum, load(a, row_sum) * factor + total)
    return factor


@helper
def _attend(a, first, panels, key, terms, offsets, layout, rows, constants, masks, D, scale):
    """Add what keys key ... key + terms contribute to the outputs of queries first ..., `panels` panels of them."""
    keys, values, _, queries, out, p, row_max, row_sum = offsets
    (row, width, _, block), (key_rows, value_rows, c_rows) = layout, rows
    (none, no_rows, value_shifts), (causal, skip) = constants, masks
    pairs, p_panel, o_panel = row - LANES, block * LANES, width * LANES
    M, bias = _rows_of(terms), (none, none, 0)
    A, B, C = (a, key_rows[key:], keys), (a, queries, pairs * LANES), (a, c_rows, p, p_panel)
    product_of_rows(A, (no_rows[:1], pairs), B, (none, no_rows, 0, 0), bias, C, M, panels)  # S^T = K Q^T
    for i in range(panels):
        at = p + i * p_panel
        seen = _mask_later_keys(a, at, terms, first + i * LANES - key, skip) if causal else terms
        if seen > 0:
            factor = _softmax(a, at, seen, scale * LOG2_E, row_max + i * LANES, row_sum + i * LANES)
            if key > 0:
                _scale(a, out + i * o_panel, D, factor)
        used = (seen + 1) // 2
        clear(a, at + used * LANES, ((terms + 1) // 2 - used) * LANES)
    A, B, C = (a, value_rows, values), (a, p, p_panel), (a, c_rows, out, o_panel)
    segment = (value_shifts[key // 2 : key // 2 + 1], (terms + 1) // 2)
    product_of_panels(A, segment, B, C, bias, C, _rows_of(D), panels)  # O^T += V^T P^T


@kernel
def _forward(arrays, shape, layout, offsets, memory, rows, constants, masks):
    (q, k, v, o, lse), (N, T, S, heads, D, parts) = arrays, shape
    keys, values, rounded, queries, out, _, row_max, row_sum = offsets
    (row, width, padded, _), (_, skip) = layout, masks
    scale, apart, pairs, o_panel = np.float32(1 / np.sqrt(D)), heads * D, row - LANES, width * LANES
    blocks = (T + QUERIES - 1) // QUERIES
    for task in prange(N * heads * parts):
        head, part = divmod(np.int64(task), parts)
        a = memory[get_thread_id()]
        for s in range(padded):
            if s < S:
                round_row(k, _start(head, S, heads, D) + s * apart, D, a, keys + s * row, pairs)
            else:
                clear(a, keys + s * row, row)
        _pack_values(v, _start(head, S, heads, D), apart, S, D, a, values, width, padded // 2 * LANES)
        for block in range(blocks * part // parts, blocks * (part + 1) // parts):
            first = block * QUERIES
            count, start = min(QUERIES, T - first), _start(head, T, heads, D) + first * apart
            panels, end = (count + LANES - 1) // LANES, min(S, _rows_of(first + count)) if skip else S
            for i in range(count):
                round_row(q, start + i * apart, D, a, rounded + i * row, pairs)
            transpose_to_panels(a, rounded, row, count, pairs, a, queries, pairs * LANES)
            for i in range(0, QUERIES, LANES):
                store(a, row_max + i, zeros() + MASKED)
                store(a, row_sum + i, zeros())
            clear(a, out, panels * o_panel)
            for key in range(0, end, KEYS):
                terms = min(KEYS, end - key)
                _attend(a, first, panels, key, terms, offsets, layout, rows, constants, masks, D, scale)
            _normalise(a, out, o_panel, D, panels, row_max, row_sum, scale)
            transpose_from_panels(a, out, o_panel, count, D, o, start, apart)
            copy(lse, head * T + first, a, row_max, count)
