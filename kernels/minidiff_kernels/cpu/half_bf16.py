"""Weights in bfloat16, rounded and packed once: half of float32's memory, and nothing to prepare at each use.

Packed weights (O, ..., C) are panels of LANES output channels for product_bf16.py,

    panels[v, segment, tap, k, lane] = the pair w[v LANES + lane, tap, 2 c], w[..., 2 c + 1],  c = segment length + k

The channels are cut into segments of equal length; a segment of all taps comes before the next segment, so that the
activations that are multiplied stay in L2. Where the panels are as large as the weights they are an array of uint16 of
the weights' shape, in which only the order of the numbers is the panels'. Others, whose channels fill no vectors, stay
float32 and are packed at each use.

Accelerates reference/half.py.
"""

import numpy as np
from numba import prange

from . import half
from .bfloat16 import round_adjacent
from .jit import helper, kernel
from .memory import empty
from .product_bf16 import CHUNK
from .simd import LANES, clear, copy, load, round_up, store, transpose_from_panels, transpose_to_panels


def segments_of(C):
    """The number of segments of C channels, and the pairs in each; the last may be padded with zeros."""
    pairs = -(-C // 2)
    count = -(-pairs // CHUNK)
    return count, -(-pairs // count)


def pack(w):
    """Weights (O, ..., C) -> uint16 of that shape, or w itself if they do not fill whole panels."""
    count, length = segments_of(w.shape[-1])
    if w.dtype == np.uint16 or w.shape[0] % LANES or w.shape[-1] != 2 * count * length:
        return w
    return panels_of(w).view(np.uint16).reshape(w.shape)


def widen(a):
    """float16, or packed bfloat16 -> float32."""
    if a.dtype != np.uint16:
        return half.widen(a)
    O, C = a.shape[0], a.shape[-1]
    y, (count, length) = empty(a.shape), segments_of(C)
    _unpack(a.reshape(-1).view(np.float32), (O, a[0].size // C, count, length), y.reshape(-1).view(np.uint32))
    return y


def panels_of(w):
    """The panels of weights (O, ..., C), packed, float16 or float32, as a flat float32 array of pairs."""
    if w.dtype == np.uint16:
        return w.reshape(-1).view(np.float32)
    w = widen(w) if w.dtype == np.float16 else w
    O, C = w.shape[0], w.shape[-1]
    taps, (count, length) = w[0].size // C, segments_of(C)
    panels = empty((round_up(O) * taps * count * length,))
    _pack(w.reshape(-1), (O, taps, C), (count, length), panels)
    return panels


@helper
def round_row(source, s, n, to, t, pairs):
    """to[t : t + pairs] = the n floats from source[s] on as pairs, then zeros; the LANES pairs after them are lost."""
    whole = n // (2 * LANES) * (2 * LANES)
    for i in range(0, whole, 2 * LANES):
        store(to, t + i // 2, round_adjacent(load(source, s + i), load(source, s + i + LANES)))
    if whole // 2 < pairs:
        clear(to, t + whole // 2, pairs - whole // 2)
    if whole < n:
        rest = np.zeros(2 * LANES, np.float32)
        copy(rest, 0, source, s + whole, n - whole)
        store(to, t + whole // 2, round_adjacent(load(rest, 0), load(rest, LANES)))


@kernel
def _pack(w, shape, segments, panels):
    (O, taps, C), (count, length) = shape, segments
    for task in prange((O + LANES - 1) // LANES * taps):
        v, tap = divmod(np.int64(task), taps)
        row = count * length + LANES
        rows, lanes = np.zeros(LANES * row, np.float32), min(LANES, O - v * LANES)
        for lane in range(lanes):
            round_row(w, ((v * LANES + lane) * taps + tap) * C, C, rows, lane * row, count * length)
        for segment in range(count):
            to = ((v * count + segment) * taps + tap) * length * LANES
            transpose_to_panels(rows, segment * length, row, LANES, length, panels, to, 0)


@kernel
def _unpack(panels, shape, bits):
    """bits: of the float32 weights."""
    O, taps, count, length = shape
    C = 2 * count * length
    for task in prange(O // LANES * taps):
        v, tap = divmod(np.int64(task), taps)
        rows = np.empty(LANES * C // 2, np.float32)
        for segment in range(count):
            at = ((v * count + segment) * taps + tap) * length * LANES
            transpose_from_panels(panels, at, 0, LANES, length, rows, segment * length, C // 2)
        halves = rows.view(np.uint16)
        for lane in range(LANES):
            to = ((v * LANES + lane) * taps + tap) * C
            for c in range(C):
                bits[to + c] = np.uint32(halves[lane * C + c]) << np.uint32(16)
