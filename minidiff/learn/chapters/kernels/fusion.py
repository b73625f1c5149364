"""Exercises of chapter 17: attention in blocks, forward and backward."""

from typing import Any

import numpy as np

from minidiff.learn.exercise import Exercise

Array = np.ndarray
State = tuple[np.ndarray, ...]


def combine(first: tuple[np.ndarray, ...], second: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """The state of the online softmax over two blocks of keys, from the states over each (Milakov & Gimelshein 2018).

    A state over some keys is the tuple (row_max, row_sum, out). Each of the T queries has scores s over these keys:

    row_max  max of s, (T,)
    row_sum  sum of exp(s - row_max), (T,)
    out      sum of exp(s - row_max) v, v being the values of the keys, (T, D): not yet divided by row_sum

    Returns the state over the keys of both: sums and out of each block are rescaled to the new maximum, then added.
    """
    row_max = np.maximum(first[0], second[0])
    row_sum, out = np.zeros_like(row_max), np.zeros_like(first[2])
    for block_max, block_sum, block_out in (first, second):
        factor = np.exp(block_max - row_max)  # (T,)
        row_sum += factor * block_sum
        out += factor[:, None] * block_out
    return row_max, row_sum, out


def _not_rescaled(first: State, second: State) -> State:
    """The parts are added as they are: each is relative to its own maximum, and must be rescaled to the new one."""
    return combine(first, second)[0], first[1] + second[1], first[2] + second[2]


def _first_alone_rescaled(first: State, second: State) -> State:
    """Only the first block is rescaled: where its maximum is the larger one, the second needs a factor below 1."""
    row_max = np.maximum(first[0], second[0])
    factor = np.exp(first[0] - row_max)
    return row_max, factor * first[1] + second[1], factor[:, None] * first[2] + second[2]


def _factor_inverted(first: State, second: State) -> State:
    """The factors are upside down: exp(s - new) = exp(s - old) exp(old - new), so a factor is at most 1."""
    row_max = np.maximum(first[0], second[0])
    one, two = (np.exp(row_max - block[0]) for block in (first, second))
    return row_max, one * first[1] + two * second[1], one[:, None] * first[2] + two[:, None] * second[2]


def _out_not_rescaled(first: State, second: State) -> State:
    """row_sum is rescaled, but out is not: both are sums of the same exponentials."""
    row_max, row_sum, _ = combine(first, second)
    return row_max, row_sum, first[2] + second[2]


def _out_divided(first: State, second: State) -> State:
    """out is divided by row_sum already: that comes once, after the last block, or the next one cannot be added."""
    row_max, row_sum, out = combine(first, second)
    return row_max, row_sum, out / row_sum[:, None]


def attention_tile_backward(
    do: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, lse: np.ndarray, delta: np.ndarray
) -> tuple[np.ndarray, ...]:
    """What one tile, T of the queries by S of the keys, adds to the gradients of attention (Dao et al. 2022).

    The whole attention of a query is o = p v with p = softmax(q k^T / sqrt(D)) over all its keys, of which the tile has
    only some. lse and delta stand for the others:

    do     gradient with respect to the output of the tile's queries, (T, D)
    q      the tile's queries, (T, D)
    k, v   the tile's keys and values, (S, D)
    lse    log of the sum of exp(q k^T / sqrt(D)) over all keys, (T,)
    delta  sum of do o over the D columns, (T,)

    The softmax's gradient is ds = p (dp - delta) with dp = do v^T, the gradient with respect to p.

    Returns the tile's terms of dq (T, D), dk (S, D) and dv (S, D).
    """
    scale = q.shape[1] ** -0.5
    p = np.exp(q @ k.T * scale - lse[:, None])  # (T, S)
    ds = p * (do @ v.T - delta[:, None]) * scale
    return ds @ k, ds.T @ q, p.T @ do


def _softmax_of_tile(do: Array, q: Array, k: Array, v: Array, lse: Array, delta: Array) -> tuple[Array, ...]:
    """p is normalised over the keys of this tile alone: p = exp(s - lse), for lse has the sum over all keys."""
    s = q @ k.T * q.shape[1] ** -0.5
    return attention_tile_backward(do, q, k, v, np.log(np.exp(s).sum(1)), delta)


def _delta_of_tile(do: Array, q: Array, k: Array, v: Array, lse: Array, delta: Array) -> tuple[Array, ...]:
    """The row sum of p dp is taken over this tile's keys: it runs over all keys, which is what delta is."""
    p = np.exp(q @ k.T * q.shape[1] ** -0.5 - lse[:, None])
    return attention_tile_backward(do, q, k, v, lse, (p * (do @ v.T)).sum(1))


def _without_delta(do: Array, q: Array, k: Array, v: Array, lse: Array, delta: Array) -> tuple[Array, ...]:
    """ds lacks delta: the softmax's normalisation subtracts it from dp."""
    return attention_tile_backward(do, q, k, v, lse, np.zeros_like(delta))


def _gradient_without_scale(do: Array, q: Array, k: Array, v: Array, lse: Array, delta: Array) -> tuple[Array, ...]:
    """dq and dk lack the factor 1 / sqrt(D), which stands between q k^T and the softmax."""
    dq, dk, dv = attention_tile_backward(do, q, k, v, lse, delta)
    root = q.shape[1] ** 0.5
    return dq * root, dk * root, dv


def _without_lse(do: Array, q: Array, k: Array, v: Array, lse: Array, delta: Array) -> tuple[Array, ...]:
    """p is exp(s), not yet a probability: subtract lse from the scores, which divides by the sum."""
    return attention_tile_backward(do, q, k, v, np.zeros_like(lse), delta)


def _states(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    found = []
    for shift in (0, 20):  # with 20, the second block's scores dominate for every query
        states = []
        for keys, offset in ((4, 0), (3, shift)):
            s, v = 2 * rng.standard_normal((5, keys)) + offset, rng.standard_normal((keys, 6))
            p = np.exp(s - s.max(1, keepdims=True))
            states.append((s.max(1), p.sum(1), p @ v))
        found.append(tuple(states))
    return found


def _tiles(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    found = []
    for tile in (slice(0, 3), slice(3, 9)):
        do, q = rng.standard_normal((2, 4, 8))
        k, v = rng.standard_normal((2, 9, 8))
        s = q @ k.T / np.sqrt(8)
        lse = np.log(np.exp(s).sum(1))
        o = np.exp(s - lse[:, None]) @ v
        found.append((do, q, k[tile], v[tile], lse, (do * o).sum(1)))
    return found


EXERCISES = (
    Exercise(
        "Online softmax",
        17,
        combine,
        _states,
        (_not_rescaled, _first_alone_rescaled, _factor_inverted, _out_not_rescaled, _out_divided),
    ),
    Exercise(
        "Attention backward, one tile",
        17,
        attention_tile_backward,
        _tiles,
        (_softmax_of_tile, _delta_of_tile, _without_delta, _gradient_without_scale, _without_lse),
    ),
)
