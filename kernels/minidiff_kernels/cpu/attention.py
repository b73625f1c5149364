"""Attention, one head of one picture at a time; a lane of a vector is a query.

Keys and values of a head are packed into panels (product.py). Then a block of queries after another: the scores,
turned so that queries lie side by side, S^T = K Q^T, are a few panels that stay in cache. Softmax runs down the
panels: its maximum, its sum and its exponentials are those of LANES queries at once, and no vector is ever
summed across. The output, O^T = V^T P^T, is turned back as it is stored. The backward pass computes the
probabilities again from the scores and lse (Dao et al. 2022, arXiv:2205.14135, section 3.1), so no T x S
matrix is ever stored.
"""

import numpy as np
from numba import get_num_threads, prange
from numba.np.ufunc.parallel import get_thread_id

from .exponential import exp, maximum
from .jit import helper, kernel
from .memory import empty
from .product import ROWS, product, product_transposed
from .simd import LANES, copy, load, round_up, store, turn, turn_back, zeros

MOST_VECTORS = 6  # of queries in a block: two tiles of the product wide
SCORE_FLOATS = 64 * 1024  # scores of a block: 256 KB of the second-level cache
LEAST = np.float32(-3e38)  # a score whose exponential is zero


def attention(q, k, v, causal=False):
    """o (N, T, heads, D) and lse (N, heads, T); causal: query t sees the keys up to t alone."""
    N, T, heads, D = q.shape
    o, lse = empty(q.shape), empty((N, heads, T))
    keys, width = round_up(k.shape[1], ROWS), round_up(D)
    vectors = _vectors(T, keys)
    scratch = empty((get_num_threads(), 2 * keys * width + vectors * LANES * (keys + 2 * width + 1)))
    _forward(q, k, v, o, lse, scratch, vectors, causal)
    return o, lse


def attention_backward(do, q, k, v, o, lse, causal=False):
    """The gradients dq, dk, dv."""
    dq, dk, dv = empty(q.shape), empty(k.shape), empty(v.shape)
    keys, width = round_up(k.shape[1], ROWS), round_up(q.shape[3])
    vectors = _vectors(q.shape[1], keys)
    scratch = empty((get_num_threads(), 4 * keys * width + vectors * LANES * (2 * keys + 5 * width + 2)))
    _backward((do, q, k, v, o), lse, (dq, dk, dv), scratch, vectors, causal)
    return dq, dk, dv


def _vectors(T, keys):
    """Vectors of queries in a block."""
    return max(1, min(MOST_VECTORS, SCORE_FLOATS // (keys * LANES), -(-T // LANES)))


@helper
def _load(x, n, h, first, count, to, to0, rows):
    """Rows first, first + 1, ... of a head into panels (D / LANES, rows, LANES)."""
    _, T, heads, D = x.shape
    flat, whole = x.ravel(), D // LANES * LANES
    for r in range(count):
        start = ((n * T + first + r) * heads + h) * D
        for d in range(0, whole, LANES):
            store(to, to0 + d * rows + r * LANES, load(flat, start + d))
        for d in range(whole, D):
            to[to0 + whole * rows + r * LANES + d - whole] = flat[start + d]


@helper
def _store(x, n, h, source, source0, rows):
    """The way back: panels (D / LANES, rows, LANES) into all rows of a head."""
    _, T, heads, D = x.shape
    flat, whole = x.ravel(), D // LANES * LANES
    for r in range(T):
        start = ((n * T + r) * heads + h) * D
        for d in range(0, whole, LANES):
            store(flat, start + d, load(source, source0 + d * rows + r * LANES))
        for d in range(whole, D):
            flat[start + d] = source[source0 + whole * rows + r * LANES + d - whole]


@helper
def _hide_later(a, at, S, query):
    """Of LANES queries, the first of which is `query`: their scores, from a[at] on, of keys later than themselves."""
    for s in range(query + 1, S):
        for lane in range(min(LANES, s - query)):
            a[at + s * LANES + lane] = LEAST


@helper
def _softmax(a, at, S, scale, rescale, largest):
    """s <- exp(scale (s - the largest)) for LANES queries, whose scores begin at a[at]; 1 / their sum; the largest."""
    most = load(a, at)
    for s in range(1, S):
        most = maximum(most, load(a, at + s * LANES))
    total = zeros()
    for s in range(S):
        e = exp((load(a, at + s * LANES) - most) * scale)
        store(a, at + s * LANES, e)
        total = total + e
    store(a, rescale, np.float32(1) / total)
    store(a, largest, most * scale)


@kernel
def _forward(q, k, v, o, lse, scratch, vectors, causal):
    (N, T, heads, D), S = q.shape, k.shape[1]
    scale, block, row = np.float32(1 / np.sqrt(D)), vectors * LANES, heads * D
    high, deep = (S + ROWS - 1) // ROWS * ROWS, (D + ROWS - 1) // ROWS * ROWS
    size, tall = high * ((D + LANES - 1) // LANES * LANES), high * LANES
    # where things lie in scratch
    keys, values, queries, p = 0, size, 2 * size, 2 * size + block * D
    out = p + block * high
    rescale, largest = out + block * deep, queries  # the queries are not needed any more by then
    flat_q, flat_o = q.ravel(), o.ravel()
    for task in prange(N * heads):
        n, h = divmod(np.int64(task), heads)  # an unsigned index would turn the division into floats
        a = scratch[get_thread_id()]
        _load(k, n, h, 0, S, a, keys, high)
        _load(v, n, h, 0, S, a, values, high)
        for first in range(0, T, block):
            count, start = min(block, T - first), ((n * T + first) * heads + h) * D
            wide = (count + LANES - 1) // LANES
            turn(flat_q, start, row, count, D, a, queries, D * LANES)
            S_t = (a, p, LANES, tall)
            product((a, keys, LANES, tall), (a, queries, LANES, D * LANES), S_t, high, wide, D, True)
            for i in range(wide):
                if causal:
                    _hide_later(a, p + i * tall, S, first + i * LANES)
                _softmax(a, p + i * tall, S, scale, rescale + i * LANES, largest + i * LANES)
            product_transposed((a, values, LANES, tall), S_t, (a, out, LANES, deep * LANES), deep, wide, S, True)
            for i in range(wide):
                for d in range(D):
                    at = out + (i * deep + d) * LANES
                    store(a, at, load(a, at) * load(a, rescale + i * LANES))
            turn_back(a, out, deep * LANES, count, D, flat_o, start, row)
            for r in range(count):
                lse[n, h, first + r] = a[largest + r] - np.log(a[rescale + r])  # which is 1 / sum


@helper
def _score_gradients(a, p, ds, S, scale, lse, delta):
    """For LANES queries: p <- probabilities, from scores; ds <- scale p (dp - do . o), from dp; see the reference."""
    own_lse, own_delta = load(a, lse), load(a, delta)
    for s in range(0, S * LANES, LANES):
        probability = exp(load(a, p + s) * scale - own_lse)
        store(a, p + s, probability)
        store(a, ds + s, probability * (load(a, ds + s) - own_delta) * scale)


@kernel
def _backward(inputs, lse, gradients, scratch, vectors, causal):
    (do, q, k, v, o), (dq, dk, dv) = inputs, gradients
    (N, T, heads, D), S = q.shape, k.shape[1]
    scale, block, row = np.float32(1 / np.sqrt(D)), vectors * LANES, heads * D
    high, deep = (S + ROWS - 1) // ROWS * ROWS, (D + ROWS - 1) // ROWS * ROWS
    V = (D + LANES - 1) // LANES
    size, some, tall = high * V * LANES, block * V * LANES, high * LANES
    # where things lie in scratch: four matrices of all keys, then those of a block of queries
    keys, values, dkeys, dvalues, queries = 0, size, 2 * size, 3 * size, 4 * size
    dout, queries_t, dout_t, dqueries_t = queries + some, queries + 2 * some, queries + 3 * some, queries + 4 * some
    out_t, p = dqueries_t, queries + 5 * some  # the output is not needed any more when dqueries_t comes
    ds, rows_lse, delta = p + block * high, p + 2 * block * high, p + 2 * block * high + block
    flat_q, flat_do, flat_o, flat_dq, flat_lse = q.ravel(), do.ravel(), o.ravel(), dq.ravel(), lse.ravel()
    for task in prange(N * heads):
        n, h = divmod(np.int64(task), heads)  # an unsigned index would turn the division into floats
        a = scratch[get_thread_id()]
        K, P, dS = (a, keys, LANES, tall), (a, p, LANES, tall), (a, ds, LANES, tall)
        _load(k, n, h, 0, S, a, keys, high)
        _load(v, n, h, 0, S, a, values, high)
        for first in range(0, T, block):
            count, fresh, start = min(block, T - first), first == 0, ((n * T + first) * heads + h) * D
            wide = (count + LANES - 1) // LANES
            _load(q, n, h, first, count, a, queries, block)
            _load(do, n, h, first, count, a, dout, block)
            turn(flat_q, start, row, count, D, a, queries_t, D * LANES)
            turn(flat_do, start, row, count, D, a, dout_t, D * LANES)
            turn(flat_o, start, row, count, D, a, out_t, D * LANES)
            for i in range(wide):
                total = zeros()
                for d in range(D):
                    at = (i * D + d) * LANES
                    total = total + load(a, dout_t + at) * load(a, out_t + at)
                store(a, delta + i * LANES, total)
            copy(a, rows_lse, flat_lse, (n * heads + h) * T + first, count)
            product(K, (a, queries_t, LANES, D * LANES), P, high, wide, D, True)
            product((a, values, LANES, tall), (a, dout_t, LANES, D * LANES), dS, high, wide, D, True)
            for i in range(wide):
                if causal:
                    _hide_later(a, p + i * tall, S, first + i * LANES)
                _score_gradients(a, p + i * tall, ds + i * tall, S, scale, rows_lse + i * LANES, delta + i * LANES)
            product(P, (a, dout, LANES, block * LANES), (a, dvalues, LANES, tall), high, V, count, fresh)
            product(dS, (a, queries, LANES, block * LANES), (a, dkeys, LANES, tall), high, V, count, fresh)
            product_transposed(K, dS, (a, dqueries_t, LANES, deep * LANES), deep, wide, S, True)
            turn_back(a, dqueries_t, deep * LANES, count, D, flat_dq, start, row)
        _store(dk, n, h, a, dkeys, high)
        _store(dv, n, h, a, dvalues, high)
