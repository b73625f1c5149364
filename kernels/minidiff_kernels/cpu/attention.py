"""Attention, a block of queries and a block of keys of one head at a time; each lane of a vector holds a query.

Keys and values of a head are packed into panels (product.py). The transposed scores of a block, S^T = K Q^T, are a few
panels that stay in L2. Softmax runs along the keys of LANES queries at once: maximum, sum and exponentials are vector
operations without a horizontal sum. Where a block of keys raises the maximum, the sum and the output of the blocks
before it are scaled down (online softmax, Milakov & Gimelshein 2018, arXiv:1805.02867).
The backward pass recomputes the probabilities from the scores (FlashAttention, Dao et al. 2022, arXiv:2205.14135,
section 3.1) and the single log-sum-exp (FlashAttention-2, Dao 2023, arXiv:2307.08691), so no T x S matrix is stored.

The rows of a head lie far apart, a pattern that hardware prefetchers do not recognise. So while the exponentials of a
block are computed, the rows of the next block of queries and of the next head's keys are prefetched.
"""

import numpy as np
from numba import get_num_threads, prange
from numba.np.ufunc.parallel import get_thread_id

from .exponential import exp, log, maximum
from .jit import helper, kernel
from .memory import empty, scratch
from .product import ROWS, product, product_transposed
from .simd import (
    LANES,
    clear,
    copy,
    load,
    prefetch_read,
    round_up,
    store,
    transpose_from_panels,
    transpose_to_panels,
    zeros,
)

VECTORS = 6  # of queries in a block: two register tiles wide
QUERIES = VECTORS * LANES
KEYS = 256  # in a block: its scores take 96 KB of L2
LINE = 16  # floats of a cache line
MASKED = np.float32(-3e38)  # score of a masked key: its exponential is zero


def attention(q, k, v, causal=False):
    """o (N, T, heads, D) and lse (N, heads, T); causal: query t attends to keys 0 ... t."""
    (N, T, heads, D), S = q.shape, k.shape[1]
    o, lse = empty(q.shape), empty((N, heads, T))
    keys, width = round_up(S, ROWS), round_up(D)
    parts = 2 * [keys * width] + 2 * [QUERIES * width] + [QUERIES * min(keys, KEYS)] + 2 * [QUERIES]
    offsets, memory = scratch(parts)
    arrays = tuple(a.reshape(-1) for a in (q, k, v, o, lse))
    skip = causal and T > QUERIES and _no_nan(v)
    _forward(arrays, (N, T, S, heads, D, _parts(N * heads, T)), offsets, memory, causal, skip)
    return o, lse


def _parts(heads, T):
    """Parts of the queries of a head, each a task that packs keys and values again: 1 if there are heads enough."""
    return min(-(-2 * get_num_threads() // max(heads, 1)), -(-T // QUERIES))


def attention_backward(do, q, k, v, o, lse, causal=False):
    """The gradients dq, dk, dv."""
    (N, T, heads, D), S = q.shape, k.shape[1]
    dq, dk, dv = empty(q.shape), empty(k.shape), empty(v.shape)
    keys, width = round_up(S, ROWS), round_up(D)
    parts = 4 * [keys * width] + 5 * [QUERIES * width] + 2 * [QUERIES * min(keys, KEYS)] + 2 * [QUERIES]
    offsets, memory = scratch(parts)
    inputs, gradients = (tuple(a.reshape(-1) for a in arrays) for arrays in ((do, q, k, v, o, lse), (dq, dk, dv)))
    skip = causal and T > QUERIES and _no_nan(do, o, k[:, T:], v[:, T:])  # o has the NaN of q, and of k and v up to T
    _backward(inputs, gradients, (N, T, S, heads, D), offsets, memory, causal, skip)
    return dq, dk, dv


def _no_nan(*arrays) -> bool:
    """Whether masked keys may be skipped: their probability is 0, and 0 times NaN is NaN."""
    with np.errstate(all="ignore"):
        return not any(np.isnan(a.sum()) for a in arrays)


@helper
def _pack_rows(source, s, row, rows, D, to, t, panel):
    """Pack rows of D floats, row apart, into panels (D / LANES, rows, LANES), panel apart."""
    whole = D // LANES * LANES
    for r in range(rows):
        here, there = s + r * row, t + r * LANES
        for d in range(0, whole, LANES):
            store(to, there + d // LANES * panel, load(source, here + d))
        for d in range(whole, D):
            to[there + whole // LANES * panel + d - whole] = source[here + d]


@helper
def _unpack_rows(source, s, panel, rows, D, to, t, row):
    """The inverse of _pack_rows."""
    whole = D // LANES * LANES
    for r in range(rows):
        here, there = s + r * LANES, t + r * row
        for d in range(0, whole, LANES):
            store(to, there + d, load(source, here + d // LANES * panel))
        for d in range(whole, D):
            to[there + d] = source[here + whole // LANES * panel + d - whole]


@helper
def _prefetch(x, y, at, D):
    """Prefetch D floats of both arrays."""
    for d in range(at, at + D, LINE):
        prefetch_read(x, d)
        prefetch_read(y, d)


@helper
def _mask_later_keys(a, at, keys, query, skip):
    """Mask the scores (keys, LANES) at a[at] of queries query ... query + LANES - 1: those of keys after the query.

    query is counted from the first of the keys, and may lie before it. Returns how many of the keys need probabilities:
    all, or if skip those that one of the queries attends to; then the probabilities of the others are set to 0.
    """
    seen = max(min(query + LANES, keys), 0) if skip else keys
    for s in range(max(query + 1, 0), seen):
        for lane in range(min(LANES, s - query)):
            a[at + s * LANES + lane] = MASKED
    clear(a, at + seen * LANES, (keys - seen) * LANES)
    return seen


@helper
def _scale(a, at, n, factor):
    """Multiply n vectors at a[at] by a vector."""
    for i in range(at, at + n * LANES, LANES):
        store(a, i, load(a, i) * factor)


@helper
def _maximum(a, at, n, start):
    """The maximum of start and n > 0 vectors at a[at]; two halves at once, since a maximum waits for the one before."""
    half = n // 2 * LANES
    first, second = start, load(a, at + (n - 1) * LANES)
    for i in range(at, at + half, LANES):
        first, second = maximum(first, load(a, i)), maximum(second, load(a, i + half))
    return maximum(first, second)


@helper
def _softmax(a, at, keys, scale, row_max, row_sum, ahead):
    """For LANES queries, scores (keys, LANES) at a[at] <- exp(scale (s - max)), max over these keys and those before.

    row_max and row_sum are the places in a of max and of the sum over all keys so far. Returns the factor by which the
    sum over the keys before was multiplied, since max has grown. ahead: arrays, and where to prefetch their rows from.
    """
    before = load(a, row_max)
    largest = _maximum(a, at, keys, before)
    total, shift, group = zeros(), largest * scale, max(keys // LANES, 1)
    q, o, query, k, v, key, row, D = ahead
    for i in range(0, keys, group):
        _prefetch(q, o, query, D)
        _prefetch(k, v, key, D)
        query, key = query + row, key + row
        for s in range(at + i * LANES, at + min(i + group, keys) * LANES, LANES):
            e = exp(load(a, s) * scale - shift)
            store(a, s, e)
            total = total + e
    factor = exp(before * scale - shift)
    store(a, row_max, largest)
    store(a, row_sum, load(a, row_sum) * factor + total)
    return factor


@helper
def _normalise(a, out, panel, D, panels, row_max, row_sum, scale):
    """Divide the outputs (panels, D, LANES) by the sums, and replace each max by the log-sum-exp."""
    for i in range(panels):
        total, at = load(a, row_sum + i * LANES), row_max + i * LANES
        _scale(a, out + i * panel, D, np.float32(1) / total)
        store(a, at, load(a, at) * scale + log(total))


@helper
def _rows_of(n):
    """n rounded up to whole register tiles."""
    return (n + ROWS - 1) // ROWS * ROWS


@helper
def _start(task, rows, heads, D):
    """Where the first row of head `task` of all N heads is, in a flat array (N, rows, heads, D)."""
    n, h = divmod(task, heads)
    return (n * rows * heads + h) * D


@kernel
def _forward(arrays, shape, offsets, memory, causal, skip):
    (q, k, v, o, lse), (N, T, S, heads, D, parts) = arrays, shape
    keys, values, queries, out, p, row_max, row_sum = offsets
    scale, row, D_rows = np.float32(1 / np.sqrt(D)), heads * D, _rows_of(D)
    panel, p_panel, o_panel = _rows_of(S) * LANES, _rows_of(min(S, KEYS)) * LANES, D_rows * LANES
    blocks = (T + QUERIES - 1) // QUERIES
    for task in prange(N * heads * parts):
        head, part = divmod(np.int64(task), parts)  # signed: Numba divides unsigned integers as floats
        a = memory[get_thread_id()]
        Q, P, O = (a, queries, LANES, D * LANES), (a, p, LANES, p_panel), (a, out, LANES, o_panel)
        _pack_rows(k, _start(head, S, heads, D), row, S, D, a, keys, panel)
        _pack_rows(v, _start(head, S, heads, D), row, S, D, a, values, panel)
        for block in range(blocks * part // parts, blocks * (part + 1) // parts):
            first = block * QUERIES
            count, start = min(QUERIES, T - first), _start(head, T, heads, D) + first * row
            panels, end = (count + LANES - 1) // LANES, min(S, _rows_of(first + count)) if skip else S
            next_q = start + QUERIES * row if first + QUERIES < T else _start(head + 1, T, heads, D)
            transpose_to_panels(q, start, row, count, D, a, queries, D * LANES)
            for i in range(0, QUERIES, LANES):
                store(a, row_max + i, zeros() + MASKED)
                store(a, row_sum + i, zeros())
            for key in range(0, end, KEYS):
                terms = min(KEYS, end - key)
                product((a, keys + key * LANES, LANES, panel), Q, P, _rows_of(terms), panels, D, True)  # S^T = K Q^T
                for i in range(panels):
                    query, at = first + i * LANES, p + i * p_panel
                    seen = _mask_later_keys(a, at, terms, query - key, skip) if causal else terms
                    if seen > 0:
                        next_k = _start(head + 1, S, heads, D) + min(query, S - LANES) * row
                        ahead = q, o, next_q + i * LANES * row, k, v, next_k, row, D
                        factor = _softmax(a, at, seen, scale, row_max + i * LANES, row_sum + i * LANES, ahead)
                        if key > 0:
                            _scale(a, out + i * o_panel, D, factor)
                # O^T = V^T P^T
                product_transposed((a, values + key * LANES, LANES, panel), P, O, D_rows, panels, terms, key == 0)
            _normalise(a, out, o_panel, D, panels, row_max, row_sum, scale)
            transpose_from_panels(a, out, o_panel, count, D, o, start, row)
            copy(lse, head * T + first, a, row_max, count)


@helper
def _score_gradients(a, p, ds, keys, scale, lse, delta, ahead):
    """For LANES queries: p from the scores at a[p]; ds = p (dp - delta) scale from dp at a[ds]; both in place."""
    own_lse, own_delta, group = load(a, lse), load(a, delta), max(keys // LANES, 1)
    q, do, o, dq, query, k, v, dk, dv, key, row, D = ahead
    for i in range(0, keys, group):
        _prefetch(q, do, query, D)
        _prefetch(o, dq, query, D)
        _prefetch(k, v, key, D)
        _prefetch(dk, dv, key, D)
        query, key = query + row, key + row
        for s in range(i * LANES, min(i + group, keys) * LANES, LANES):
            probability = exp(load(a, p + s) * scale - own_lse)
            store(a, p + s, probability)
            store(a, ds + s, probability * (load(a, ds + s) - own_delta) * scale)


@helper
def _delta(a, dout_t, out_t, D, panels, delta):
    """delta = do . o of each query, from the transposed do and o (panels, D, LANES)."""
    for i in range(panels):
        total = zeros()
        for d in range(i * D * LANES, (i + 1) * D * LANES, LANES):
            total = total + load(a, dout_t + d) * load(a, out_t + d)
        store(a, delta + i * LANES, total)


@helper
def _pack_block(inputs, start, row, count, D, a, offsets):
    """For a block of queries: pack q and do, transpose q, do and o, and compute delta, at those offsets in a."""
    (q, do, o), (queries, dout, queries_t, dout_t, out_t, delta) = inputs, offsets
    _pack_rows(q, start, row, count, D, a, queries, QUERIES * LANES)
    _pack_rows(do, start, row, count, D, a, dout, QUERIES * LANES)
    transpose_to_panels(q, start, row, count, D, a, queries_t, D * LANES)
    transpose_to_panels(do, start, row, count, D, a, dout_t, D * LANES)
    transpose_to_panels(o, start, row, count, D, a, out_t, D * LANES)
    _delta(a, dout_t, out_t, D, (count + LANES - 1) // LANES, delta)


@helper
def _multiply_gradients(a, P, dS, K, blocks, sums, sizes):
    """dV += P^T dO, dK += dS^T Q, dQ^T = (in the first block of keys) or += K^T dS^T."""
    (dout, queries), (dV, dK, dQ_t), (terms, count, panels, D, first) = blocks, sums, sizes
    rows, V = _rows_of(terms), (D + LANES - 1) // LANES
    product(P, (a, dout, LANES, QUERIES * LANES), dV, rows, V, count, False)
    product(dS, (a, queries, LANES, QUERIES * LANES), dK, rows, V, count, False)
    product_transposed(K, dS, dQ_t, _rows_of(D), panels, terms, first)


@kernel
def _backward(inputs, gradients, shape, offsets, memory, causal, skip):
    (do, q, k, v, o, lse), (dq, dk, dv), (N, T, S, heads, D) = inputs, gradients, shape
    keys, values, dkeys, dvalues, queries, dout, queries_t, dout_t, dqueries_t, p, ds, row_lse, delta = offsets
    scale, row = np.float32(1 / np.sqrt(D)), heads * D
    panel, p_panel, o_panel = _rows_of(S) * LANES, _rows_of(min(S, KEYS)) * LANES, _rows_of(D) * LANES
    for task in prange(N * heads):
        head = np.int64(task)  # signed: Numba divides unsigned integers as floats
        a = memory[get_thread_id()]
        Q, dO = (a, queries_t, LANES, D * LANES), (a, dout_t, LANES, D * LANES)
        P, dS = (a, p, LANES, p_panel), (a, ds, LANES, p_panel)
        key_start = _start(head, S, heads, D)
        _pack_rows(k, key_start, row, S, D, a, keys, panel)
        _pack_rows(v, key_start, row, S, D, a, values, panel)
        clear(a, dkeys, queries - dkeys)
        for first in range(0, T, QUERIES):
            count, start = min(QUERIES, T - first), _start(head, T, heads, D) + first * row
            panels, end = (count + LANES - 1) // LANES, min(S, _rows_of(first + count)) if skip else S
            next_q = start + QUERIES * row if first + QUERIES < T else _start(head + 1, T, heads, D)
            # dqueries_t holds o until dq comes
            _pack_block((q, do, o), start, row, count, D, a, (queries, dout, queries_t, dout_t, dqueries_t, delta))
            copy(a, row_lse, lse, head * T + first, count)
            for key in range(0, end, KEYS):
                terms, at = min(KEYS, end - key), key * LANES
                K = (a, keys + at, LANES, panel)
                # S^T = K Q^T and dP^T = V dO^T, then P^T and dS^T in their places
                product(K, Q, P, _rows_of(terms), panels, D, True)
                product((a, values + at, LANES, panel), dO, dS, _rows_of(terms), panels, D, True)
                for i in range(panels):
                    j, query = i * p_panel, first + i * LANES
                    seen = _mask_later_keys(a, p + j, terms, query - key, skip) if causal else terms
                    clear(a, ds + j + seen * LANES, (terms - seen) * LANES)
                    next_k = _start(head + 1, S, heads, D) + min(query, S - LANES) * row
                    ahead = q, do, o, dq, next_q + i * LANES * row, k, v, dk, dv, next_k, row, D
                    _score_gradients(a, p + j, ds + j, seen, scale, row_lse + i * LANES, delta + i * LANES, ahead)
                sums = (a, dvalues + at, LANES, panel), (a, dkeys + at, LANES, panel), (a, dqueries_t, LANES, o_panel)
                _multiply_gradients(a, P, dS, K, (dout, queries), sums, (terms, count, panels, D, key == 0))
            transpose_from_panels(a, dqueries_t, o_panel, count, D, dq, start, row)
        _unpack_rows(a, dkeys, panel, S, D, dk, key_start, row)
        _unpack_rows(a, dvalues, panel, S, D, dv, key_start, row)
