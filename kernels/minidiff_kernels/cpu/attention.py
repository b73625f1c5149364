"""Attention, one head of one image at a time; each lane of a vector holds a query.

Keys and values of a head are packed into panels (product.py). Then, for each block of queries, the transposed scores
S^T = K Q^T are a few panels that stay in L2. Softmax runs along the keys of LANES queries at once: maximum, sum and
exponentials are vector operations without a horizontal sum. The output O^T = V^T P^T is transposed as it is stored.
The backward pass recomputes the probabilities from the scores (FlashAttention, Dao et al. 2022, arXiv:2205.14135,
section 3.1) and the single log-sum-exp (FlashAttention-2, Dao 2023, arXiv:2307.08691), so no T x S matrix is stored.
"""

import numpy as np
from numba import get_num_threads, prange
from numba.np.ufunc.parallel import get_thread_id

from .exponential import exp, maximum
from .jit import helper, kernel
from .memory import empty
from .product import ROWS, product, product_transposed
from .simd import LANES, copy, load, round_up, store, transpose_from_panels, transpose_to_panels, zeros

MAX_VECTORS = 6  # of queries in a block: two register tiles wide
SCORE_FLOATS = 64 * 1024  # scores of a block: 256 KB of L2
MASKED = np.float32(-3e38)  # score of a masked key: its exponential is zero


def attention(q, k, v, causal=False):
    """o (N, T, heads, D) and lse (N, heads, T); causal: query t attends to keys 0 ... t."""
    N, T, heads, D = q.shape
    o, lse = empty(q.shape), empty((N, heads, T))
    keys, width = round_up(k.shape[1], ROWS), round_up(D)
    vectors = _block_vectors(T, keys)
    scratch = empty((get_num_threads(), 2 * keys * width + vectors * LANES * (keys + 2 * width + 1)))
    _forward(q, k, v, o, lse, scratch, vectors, causal)
    return o, lse


def attention_backward(do, q, k, v, o, lse, causal=False):
    """The gradients dq, dk, dv."""
    dq, dk, dv = empty(q.shape), empty(k.shape), empty(v.shape)
    keys, width = round_up(k.shape[1], ROWS), round_up(q.shape[3])
    vectors = _block_vectors(q.shape[1], keys)
    scratch = empty((get_num_threads(), 4 * keys * width + vectors * LANES * (2 * keys + 5 * width + 2)))
    _backward((do, q, k, v, o), lse, (dq, dk, dv), scratch, vectors, causal)
    return dq, dk, dv


def _block_vectors(T, keys):
    """Vectors of queries in a block."""
    return max(1, min(MAX_VECTORS, SCORE_FLOATS // (keys * LANES), -(-T // LANES)))


@helper
def _pack_rows(x, n, h, first, count, to, to0, rows):
    """Pack rows first ... first + count - 1 of a head into panels (D / LANES, rows, LANES)."""
    _, T, heads, D = x.shape
    flat, whole = x.ravel(), D // LANES * LANES
    for r in range(count):
        start = ((n * T + first + r) * heads + h) * D
        for d in range(0, whole, LANES):
            store(to, to0 + d * rows + r * LANES, load(flat, start + d))
        for d in range(whole, D):
            to[to0 + whole * rows + r * LANES + d - whole] = flat[start + d]


@helper
def _unpack_rows(x, n, h, source, source0, rows):
    """The inverse of _pack_rows, for all rows of a head."""
    _, T, heads, D = x.shape
    flat, whole = x.ravel(), D // LANES * LANES
    for r in range(T):
        start = ((n * T + r) * heads + h) * D
        for d in range(0, whole, LANES):
            store(flat, start + d, load(source, source0 + d * rows + r * LANES))
        for d in range(whole, D):
            flat[start + d] = source[source0 + whole * rows + r * LANES + d - whole]


@helper
def _mask_later_keys(a, at, S, query):
    """Mask the scores (S, LANES) at a[at] of queries query ... query + LANES - 1: those of keys after the query."""
    for s in range(query + 1, S):
        for lane in range(min(LANES, s - query)):
            a[at + s * LANES + lane] = MASKED


@helper
def _softmax(a, at, S, scale, inverse_sum, row_max):
    """For LANES queries, scores (S, LANES) at a[at] <- exp(scale (s - max)), not normalised; 1 / sum and scale max.

    inverse_sum and row_max are the places in a where the two vectors are stored.
    """
    largest = load(a, at)
    for s in range(1, S):
        largest = maximum(largest, load(a, at + s * LANES))
    total = zeros()
    for s in range(S):
        e = exp((load(a, at + s * LANES) - largest) * scale)
        store(a, at + s * LANES, e)
        total = total + e
    store(a, inverse_sum, np.float32(1) / total)
    store(a, row_max, largest * scale)


@helper
def _rows_of(n):
    """n rounded up to whole register tiles."""
    return (n + ROWS - 1) // ROWS * ROWS


@kernel
def _forward(q, k, v, o, lse, scratch, vectors, causal):
    (N, T, heads, D), S = q.shape, k.shape[1]
    scale, block, row = np.float32(1 / np.sqrt(D)), vectors * LANES, heads * D
    S_rows, D_rows = _rows_of(S), _rows_of(D)
    matrix = S_rows * ((D + LANES - 1) // LANES * LANES)  # floats of all keys, or of all values
    panel = S_rows * LANES
    # offsets in a thread's scratch
    keys, values, queries = 0, matrix, 2 * matrix
    p = queries + block * D
    out = p + block * S_rows
    inverse_sum = out + block * D_rows
    row_max = queries  # the queries are no longer needed by then
    flat_q, flat_o = q.ravel(), o.ravel()
    for task in prange(N * heads):
        n, h = divmod(np.int64(task), heads)  # signed: Numba divides unsigned integers as floats
        a = scratch[get_thread_id()]
        S_t = (a, p, LANES, panel)  # (S, block), then P^T in its place
        _pack_rows(k, n, h, 0, S, a, keys, S_rows)
        _pack_rows(v, n, h, 0, S, a, values, S_rows)
        for first in range(0, T, block):
            count, start = min(block, T - first), ((n * T + first) * heads + h) * D
            panels = (count + LANES - 1) // LANES
            # S^T = K Q^T
            transpose_to_panels(flat_q, start, row, count, D, a, queries, D * LANES)
            product((a, keys, LANES, panel), (a, queries, LANES, D * LANES), S_t, S_rows, panels, D, True)
            for i in range(panels):
                if causal:
                    _mask_later_keys(a, p + i * panel, S, first + i * LANES)
                _softmax(a, p + i * panel, S, scale, inverse_sum + i * LANES, row_max + i * LANES)
            # O^T = V^T P^T
            product_transposed((a, values, LANES, panel), S_t, (a, out, LANES, D_rows * LANES), D_rows, panels, S, True)
            for i in range(panels):
                for d in range(D):
                    at = out + (i * D_rows + d) * LANES
                    store(a, at, load(a, at) * load(a, inverse_sum + i * LANES))
            transpose_from_panels(a, out, D_rows * LANES, count, D, flat_o, start, row)
            for r in range(count):
                lse[n, h, first + r] = a[row_max + r] - np.log(a[inverse_sum + r])


@helper
def _score_gradients(a, p, ds, S, scale, lse, delta):
    """For LANES queries: p from the scores at a[p]; ds = p (dp - delta) scale from dp at a[ds]; both in place."""
    own_lse, own_delta = load(a, lse), load(a, delta)
    for s in range(0, S * LANES, LANES):
        probability = exp(load(a, p + s) * scale - own_lse)
        store(a, p + s, probability)
        store(a, ds + s, probability * (load(a, ds + s) - own_delta) * scale)


@helper
def _delta(a, dout_t, out_t, D, panels, delta):
    """delta = do . o of each query, from the transposed do and o (panels, D, LANES)."""
    for i in range(panels):
        total = zeros()
        for d in range(D):
            at = (i * D + d) * LANES
            total = total + load(a, dout_t + at) * load(a, out_t + at)
        store(a, delta + i * LANES, total)


@helper
def _pack_block(inputs, n, h, first, count, a, offsets):
    """For a block of queries: pack q and do, transpose q, do and o, and compute delta, at those offsets in a."""
    (q, do, o), (queries, dout, queries_t, dout_t, out_t, delta, block) = inputs, offsets
    _, T, heads, D = q.shape
    start, row = ((n * T + first) * heads + h) * D, heads * D
    _pack_rows(q, n, h, first, count, a, queries, block)
    _pack_rows(do, n, h, first, count, a, dout, block)
    transpose_to_panels(q.ravel(), start, row, count, D, a, queries_t, D * LANES)
    transpose_to_panels(do.ravel(), start, row, count, D, a, dout_t, D * LANES)
    transpose_to_panels(o.ravel(), start, row, count, D, a, out_t, D * LANES)
    _delta(a, dout_t, out_t, D, (count + LANES - 1) // LANES, delta)


@kernel
def _backward(inputs, lse, gradients, scratch, vectors, causal):
    (do, q, k, v, o), (dq, dk, dv) = inputs, gradients
    (N, T, heads, D), S = q.shape, k.shape[1]
    scale, block, row = np.float32(1 / np.sqrt(D)), vectors * LANES, heads * D
    S_rows, D_rows, V = _rows_of(S), _rows_of(D), (D + LANES - 1) // LANES
    matrix, part, panel = S_rows * V * LANES, block * V * LANES, S_rows * LANES
    # offsets in a thread's scratch: four matrices of all keys, five of a block of queries, then scores and row sums
    keys, values, dkeys, dvalues, queries = 0, matrix, 2 * matrix, 3 * matrix, 4 * matrix
    dout, queries_t, dout_t, dqueries_t = queries + part, queries + 2 * part, queries + 3 * part, queries + 4 * part
    out_t = dqueries_t  # o is no longer needed when dq comes
    p = queries + 5 * part
    ds, rows_lse = p + block * S_rows, p + 2 * block * S_rows
    delta = rows_lse + block
    flat_dq, flat_lse = dq.ravel(), lse.ravel()
    for task in prange(N * heads):
        n, h = divmod(np.int64(task), heads)  # signed: Numba divides unsigned integers as floats
        a = scratch[get_thread_id()]
        K, P, dS = (a, keys, LANES, panel), (a, p, LANES, panel), (a, ds, LANES, panel)
        _pack_rows(k, n, h, 0, S, a, keys, S_rows)
        _pack_rows(v, n, h, 0, S, a, values, S_rows)
        for first in range(0, T, block):
            count, start = min(block, T - first), ((n * T + first) * heads + h) * D
            panels = (count + LANES - 1) // LANES
            _pack_block((q, do, o), n, h, first, count, a, (queries, dout, queries_t, dout_t, out_t, delta, block))
            copy(a, rows_lse, flat_lse, (n * heads + h) * T + first, count)
            # S^T = K Q^T and dP^T = V dO^T, then P^T and dS^T in their places
            product(K, (a, queries_t, LANES, D * LANES), P, S_rows, panels, D, True)
            product((a, values, LANES, panel), (a, dout_t, LANES, D * LANES), dS, S_rows, panels, D, True)
            for i in range(panels):
                if causal:
                    _mask_later_keys(a, p + i * panel, S, first + i * LANES)
                _score_gradients(a, p + i * panel, ds + i * panel, S, scale, rows_lse + i * LANES, delta + i * LANES)
            # dV += P^T dO, dK += dS^T Q, dQ^T = K^T dS^T
            product(P, (a, dout, LANES, block * LANES), (a, dvalues, LANES, panel), S_rows, V, count, first == 0)
            product(dS, (a, queries, LANES, block * LANES), (a, dkeys, LANES, panel), S_rows, V, count, first == 0)
            product_transposed(K, dS, (a, dqueries_t, LANES, D_rows * LANES), D_rows, panels, S, True)
            transpose_from_panels(a, dqueries_t, D_rows * LANES, count, D, flat_dq, start, row)
        _unpack_rows(dk, n, h, a, dkeys, S_rows)
        _unpack_rows(dv, n, h, a, dvalues, S_rows)
