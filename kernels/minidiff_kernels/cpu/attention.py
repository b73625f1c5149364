"""Attention, one head of one picture at a time, the scores of a block of queries at once.

Keys and values of a head are packed into scratch; then for BLOCK queries after another: scores, softmax and
the weighted sum of values, while the scores lie in cache. The backward pass computes the probabilities again
from the scores and lse (Dao et al. 2022, arXiv:2205.14135, section 3.1), so no T x S matrix is ever stored.

In scratch every row is rounded up to whole vectors: `wide` numbers for the D of a head, `long` for the S keys.
"""

import numpy as np
from numba import get_num_threads, prange
from numba.np.ufunc.parallel import get_thread_id

from .jit import helper, kernel
from .memory import empty
from .simd import LANES, ROWS, add_product, clear, exp, round_up

BLOCK = 64  # queries at a time, a multiple of ROWS


def attention(q, k, v):
    """o (N, T, heads, D) and lse (N, heads, T)."""
    N, T, heads, D = q.shape
    o, lse = empty(q.shape), empty((N, heads, T))
    wide, long = round_up(D), round_up(k.shape[1])
    scratch = empty((get_num_threads(), 2 * long * wide + BLOCK * (long + 2 * wide)))
    _forward(q, k, v, o, lse, scratch, wide, long)
    return o, lse


def attention_backward(do, q, k, v, o, lse):
    """The gradients dq, dk, dv."""
    dq, dk, dv = empty(q.shape), empty(k.shape), empty(v.shape)
    wide, long = round_up(q.shape[3]), round_up(k.shape[1])
    scratch = empty((get_num_threads(), 5 * long * wide + BLOCK * (2 * long + 3 * wide)))
    _backward((do, q, k, v, o), lse, (dq, dk, dv), scratch, wide, long)
    return dq, dk, dv


@helper
def _load(x, n, h, first, to, to0, rows, wide):
    """Rows first, first + 1, ... of a head into scratch, (rows, wide); zeros behind the last and behind D."""
    T, D = x.shape[1], x.shape[3]
    clear(to, to0, rows * wide)
    for r in range(min(rows, T - first)):
        for d in range(D):
            to[to0 + r * wide + d] = x[n, first + r, h, d]


@helper
def _load_transposed(x, n, h, to, to0, wide, long):
    """All rows of a head into scratch, as columns: (wide, long), zeros behind them."""
    S, D = x.shape[1], x.shape[3]
    clear(to, to0, wide * long)
    for s in range(S):
        for d in range(D):
            to[to0 + d * long + s] = x[n, s, h, d]


@helper
def _store(x, n, h, first, source, source0, rows, wide):
    """The way back: rows of scratch into a head."""
    T, D = x.shape[1], x.shape[3]
    for r in range(min(rows, T - first)):
        for d in range(D):
            x[n, first + r, h, d] = source[source0 + r * wide + d]


@helper
def _softmax(s, scale):
    """s <- exp(scale s - lse) in place, for one row; returns lse."""
    largest = s[0]
    for i in range(len(s)):
        largest = s[i] if s[i] > largest else largest
    total = np.float32(0)
    for i in range(len(s)):
        s[i] = exp((s[i] - largest) * scale)
        total += s[i]
    for i in range(len(s)):
        s[i] /= total
    return largest * scale + np.log(total)


@kernel
def _forward(q, k, v, o, lse, scratch, wide, long):
    (N, T, heads, D), S = q.shape, k.shape[1]
    scale = np.float32(1 / np.sqrt(D))
    # where things lie in scratch
    keys, values, queries = 0, long * wide, 2 * long * wide
    p, out = queries + BLOCK * wide, queries + BLOCK * (wide + long)
    for task in prange(N * heads):
        n, h = divmod(np.int64(task), heads)  # an unsigned index would turn the division into floats
        a = scratch[get_thread_id()]
        _load_transposed(k, n, h, a, keys, wide, long)
        _load(v, n, h, 0, a, values, long, wide)
        for first in range(0, T, BLOCK):
            rows = min(BLOCK, (T - first + ROWS - 1) // ROWS * ROWS)
            _load(q, n, h, first, a, queries, rows, wide)
            clear(a, p, rows * long)
            add_product(a, queries, wide, 1, a, keys, LANES, long, a, p, long, rows, long // LANES, D)
            for r in range(min(rows, T - first)):
                lse[n, h, first + r] = _softmax(a[p + r * long : p + r * long + S], scale)
            clear(a, out, rows * wide)
            add_product(a, p, long, 1, a, values, LANES, wide, a, out, wide, rows, wide // LANES, S)
            _store(o, n, h, first, a, out, rows, wide)


@helper
def _score_gradients(p, dp, do, o, lse, scale):
    """For one query: p <- probabilities from raw scores, dp <- ds = p (dp - do . o) scale; see the reference."""
    delta = np.float32(0)
    for d in range(len(o)):
        delta += do[d] * o[d]
    for i in range(len(p)):
        p[i] = exp(p[i] * scale - lse)
        dp[i] = p[i] * (dp[i] - delta) * scale


@kernel
def _backward(inputs, lse, gradients, scratch, wide, long):
    (do, q, k, v, o), (dq, dk, dv) = inputs, gradients
    (N, T, heads, D), S = q.shape, k.shape[1]
    scale = np.float32(1 / np.sqrt(D))
    # where things lie in scratch; five matrices of all keys, then those of a block of queries
    size = long * wide
    keys, keys_t, values_t, dkeys, dvalues = 0, size, 2 * size, 3 * size, 4 * size
    queries, dout, dqueries = 5 * size, 5 * size + BLOCK * wide, 5 * size + 2 * BLOCK * wide
    p = dqueries + BLOCK * wide
    ds = p + BLOCK * long
    vectors, vectors_long = wide // LANES, long // LANES
    for task in prange(N * heads):
        n, h = divmod(np.int64(task), heads)  # an unsigned index would turn the division into floats
        a = scratch[get_thread_id()]
        _load(k, n, h, 0, a, keys, long, wide)
        _load_transposed(k, n, h, a, keys_t, wide, long)
        _load_transposed(v, n, h, a, values_t, wide, long)
        clear(a, dkeys, 2 * size)
        for first in range(0, T, BLOCK):
            count = min(BLOCK, T - first)
            rows = (count + ROWS - 1) // ROWS * ROWS
            _load(q, n, h, first, a, queries, rows, wide)
            _load(do, n, h, first, a, dout, rows, wide)
            clear(a, dqueries, BLOCK * (wide + 2 * long))
            add_product(a, queries, wide, 1, a, keys_t, LANES, long, a, p, long, rows, vectors_long, D)
            add_product(a, dout, wide, 1, a, values_t, LANES, long, a, ds, long, rows, vectors_long, D)
            for r in range(count):
                i, j, t = p + r * long, ds + r * long, first + r
                _score_gradients(a[i : i + S], a[j : j + S], do[n, t, h], o[n, t, h], lse[n, h, t], scale)
            add_product(a, p, 1, long, a, dout, LANES, wide, a, dvalues, wide, long, vectors, count)
            add_product(a, ds, 1, long, a, queries, LANES, wide, a, dkeys, wide, long, vectors, count)
            add_product(a, ds, long, 1, a, keys, LANES, wide, a, dqueries, wide, rows, vectors, S)
            _store(dq, n, h, first, a, dqueries, rows, wide)
        _store(dk, n, h, 0, a, dkeys, long, wide)
        _store(dv, n, h, 0, a, dvalues, long, wide)
