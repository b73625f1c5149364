"""Attention, one head of one picture at a time; a lane of a vector is a query.

Keys and values of a head are packed into panels (simd.py). Then a block of queries after another: the scores,
turned so that queries lie side by side, S^T = K Q^T, are a few panels that stay in cache. Softmax runs down the
panels: its maximum, its sum and its exponentials are those of LANES queries at once, and no vector is ever
summed across. The output, O^T = V^T P^T, is turned back as it is stored. The backward pass computes the
probabilities again from the scores and lse (Dao et al. 2022, arXiv:2205.14135, section 3.1), so no T x S
matrix is ever stored.
"""

import numpy as np
from numba import get_num_threads, prange
from numba.np.ufunc.parallel import get_thread_id

from .jit import helper, kernel
from .memory import empty
from .product import ROWS, product, product_transposed
from .simd import LANES, exp, load, maximum, round_up, store

MOST_VECTORS = 6  # of queries in a block: two tiles of the product wide
SCORE_FLOATS = 64 * 1024  # scores of a block: 256 KB of the second-level cache


def attention(q, k, v):
    """o (N, T, heads, D) and lse (N, heads, T)."""
    N, T, heads, D = q.shape
    o, lse = empty(q.shape), empty((N, heads, T))
    keys, width = round_up(k.shape[1], ROWS), round_up(D)
    vectors = _vectors(T, keys)
    scratch = empty((get_num_threads(), 2 * keys * width + vectors * LANES * (keys + 2 * width + 1)))
    _forward(q, k, v, o, lse, scratch, vectors)
    return o, lse


def attention_backward(do, q, k, v, o, lse):
    """The gradients dq, dk, dv."""
    dq, dk, dv = empty(q.shape), empty(k.shape), empty(v.shape)
    keys, width = round_up(k.shape[1], ROWS), round_up(q.shape[3])
    vectors = _vectors(q.shape[1], keys)
    scratch = empty((get_num_threads(), 4 * keys * width + vectors * LANES * (2 * keys + 5 * width + 2)))
    _backward((do, q, k, v, o), lse, (dq, dk, dv), scratch, vectors)
    return dq, dk, dv


def _vectors(T, keys):
    """Vectors of queries in a block."""
    return max(1, min(MOST_VECTORS, SCORE_FLOATS // (keys * LANES), -(-T // LANES)))


@helper
def _load(x, n, h, first, count, scale, to, to0, rows):
    """Rows first, first + 1, ... of a head, times scale, into panels (D / LANES, rows, LANES)."""
    _, T, heads, D = x.shape
    flat = x.ravel()
    for r in range(count):
        start = ((n * T + first + r) * heads + h) * D
        for d in range(0, D // LANES * LANES, LANES):
            store(to, to0 + d * rows + r * LANES, load(flat, start + d) * scale)
        for d in range(D // LANES * LANES, D):
            to[to0 + d // LANES * LANES * rows + r * LANES + d % LANES] = flat[start + d] * scale


@helper
def _store(x, n, h, source, source0, rows):
    """The way back: panels (D / LANES, rows, LANES) into all rows of a head."""
    _, T, heads, D = x.shape
    for r in range(T):
        for d in range(D):
            x[n, r, h, d] = source[source0 + d // LANES * LANES * rows + r * LANES + d % LANES]


@helper
def _load_turned(x, n, h, first, count, scale, to, to0):
    """The same rows as columns, side by side: panels (rows / LANES, D, LANES)."""
    D = x.shape[3]
    for r in range(count):
        at = to0 + r // LANES * LANES * D + r % LANES
        for d in range(D):
            to[at + d * LANES] = x[n, first + r, h, d] * scale


@helper
def _store_turned(x, n, h, first, count, scales, scales0, source, source0, rows):
    """Columns of panels (count / LANES, rows, LANES), each times its scale, into rows of a head."""
    D = x.shape[3]
    for r in range(count):
        at, scale = source0 + r // LANES * LANES * rows + r % LANES, scales[scales0 + r]
        for d in range(D):
            x[n, first + r, h, d] = source[at + d * LANES] * scale


@helper
def _softmax(a, at, S, sums, largest):
    """s <- exp(s - the largest) for LANES queries, whose scores begin at a[at]; their sums and the largest."""
    most = load(a, at)
    for s in range(1, S):
        most = maximum(most, load(a, at + s * LANES))
    total = most * np.float32(0)
    for s in range(S):
        e = exp(load(a, at + s * LANES) - most)
        store(a, at + s * LANES, e)
        total = total + e
    store(a, sums, total)
    store(a, largest, most)


@kernel
def _forward(q, k, v, o, lse, scratch, vectors):
    (N, T, heads, D), S = q.shape, k.shape[1]
    scale, one, block = np.float32(1 / np.sqrt(D)), np.float32(1), vectors * LANES
    high, deep = (S + ROWS - 1) // ROWS * ROWS, (D + ROWS - 1) // ROWS * ROWS
    size, tall = high * ((D + LANES - 1) // LANES * LANES), high * LANES
    # where things lie in scratch
    keys, values, queries, p = 0, size, 2 * size, 2 * size + block * D
    out = p + block * high
    sums, largest = out + block * deep, queries  # the queries are not needed any more by then
    for task in prange(N * heads):
        n, h = divmod(np.int64(task), heads)  # an unsigned index would turn the division into floats
        a = scratch[get_thread_id()]
        _load(k, n, h, 0, S, one, a, keys, high)
        _load(v, n, h, 0, S, one, a, values, high)
        for first in range(0, T, block):
            count = min(block, T - first)
            wide = (count + LANES - 1) // LANES
            _load_turned(q, n, h, first, count, scale, a, queries)
            S_t = (a, p, LANES, tall)
            product((a, keys, LANES, tall), (a, queries, LANES, D * LANES), S_t, high, wide, D, True)
            for i in range(wide):
                _softmax(a, p + i * high * LANES, S, sums + i * LANES, largest + i * LANES)
            product_transposed((a, values, LANES, tall), S_t, (a, out, LANES, deep * LANES), deep, wide, S, True)
            for r in range(count):
                lse[n, h, first + r] = a[largest + r] + np.log(a[sums + r])
                a[sums + r] = one / a[sums + r]
            _store_turned(o, n, h, first, count, a, sums, a, out, deep)


@helper
def _score_gradients(a, p, ds, S, lse, delta):
    """For LANES queries: p <- probabilities from scores, ds <- p (dp - do . o), where dp lies; see the reference."""
    own_lse, own_delta = load(a, lse), load(a, delta)
    for s in range(0, S * LANES, LANES):
        probability = exp(load(a, p + s) - own_lse)
        store(a, p + s, probability)
        store(a, ds + s, probability * (load(a, ds + s) - own_delta))


@kernel
def _backward(inputs, lse, gradients, scratch, vectors):
    (do, q, k, v, o), (dq, dk, dv) = inputs, gradients
    (N, T, heads, D), S = q.shape, k.shape[1]
    scale, one, block = np.float32(1 / np.sqrt(D)), np.float32(1), vectors * LANES
    high, deep = (S + ROWS - 1) // ROWS * ROWS, (D + ROWS - 1) // ROWS * ROWS
    V = (D + LANES - 1) // LANES
    size, some, tall = high * V * LANES, block * V * LANES, high * LANES
    # where things lie in scratch: four matrices of all keys, then those of a block of queries
    keys, values, dkeys, dvalues, queries = 0, size, 2 * size, 3 * size, 4 * size
    dout, queries_t, dout_t, dqueries_t = queries + some, queries + 2 * some, queries + 3 * some, queries + 4 * some
    p = queries + 5 * some
    ds, rows_lse, delta = p + block * high, p + 2 * block * high, p + 2 * block * high + block
    for task in prange(N * heads):
        n, h = divmod(np.int64(task), heads)  # an unsigned index would turn the division into floats
        a = scratch[get_thread_id()]
        _load(k, n, h, 0, S, one, a, keys, high)
        _load(v, n, h, 0, S, one, a, values, high)
        for first in range(0, T, block):
            count, fresh = min(block, T - first), first == 0
            wide = (count + LANES - 1) // LANES
            _load(q, n, h, first, count, scale, a, queries, block)
            _load(do, n, h, first, count, one, a, dout, block)
            _load_turned(q, n, h, first, count, scale, a, queries_t)
            _load_turned(do, n, h, first, count, one, a, dout_t)
            for r in range(count):
                total = np.float32(0)
                for d in range(D):
                    total += do[n, first + r, h, d] * o[n, first + r, h, d]
                a[delta + r], a[rows_lse + r] = total, lse[n, h, first + r]
            K_, P, dS = (a, keys, LANES, tall), (a, p, LANES, tall), (a, ds, LANES, tall)
            product(K_, (a, queries_t, LANES, D * LANES), P, high, wide, D, True)
            product((a, values, LANES, tall), (a, dout_t, LANES, D * LANES), dS, high, wide, D, True)
            for i in range(wide):
                _score_gradients(a, p + i * tall, ds + i * tall, S, rows_lse + i * LANES, delta + i * LANES)
            product(P, (a, dout, LANES, block * LANES), (a, dvalues, LANES, tall), high, V, count, fresh)
            product(dS, (a, queries, LANES, block * LANES), (a, dkeys, LANES, tall), high, V, count, fresh)
            product_transposed(K_, dS, (a, dqueries_t, LANES, deep * LANES), deep, wide, S, True)
            for r in range(count):
                a[delta + r] = scale
            _store_turned(dq, n, h, first, count, a, delta, a, dqueries_t, deep)
        _store(dk, n, h, a, dkeys, high)
        _store(dv, n, h, a, dvalues, high)
