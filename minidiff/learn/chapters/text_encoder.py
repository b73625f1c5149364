"""The exercise of chapter 10: causal attention."""

from typing import TYPE_CHECKING, Any

import numpy as np

from minidiff.data.imaging import new_figure, rendered
from minidiff.learn.exercise import Answer, Exercise

if TYPE_CHECKING:
    from PIL import Image


def causal_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Attention of every token to itself and earlier ones (Vaswani et al. 2017, eq. 1, with the mask of section 3.2.3).

    o[i] = sum over j <= i of p[i, j] v[j], where p[i] is the softmax over j <= i of q[i] . k[j] / sqrt(D).

    q  queries, (T, D)
    k  keys, (T, D)
    v  values, (T, C)

    Returns o, (T, C).
    """
    T, D = q.shape
    scores = np.where(np.tri(T, dtype=bool), q @ k.T / np.sqrt(D), -np.inf)  # (T, T)
    return _softmax(scores) @ v


def _softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def _without_mask(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Every token attends to all tokens: those after it must have weight 0."""
    return _softmax(q @ k.T / np.sqrt(q.shape[1])) @ v


def _later_tokens(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The mask is transposed: token i attends to j >= i, and should to j <= i. np.tri has ones below the diagonal."""
    scores = q @ k.T / np.sqrt(q.shape[1])
    return _softmax(np.where(np.tri(len(q), dtype=bool).T, scores, -np.inf)) @ v


def _without_scale(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The scores lack their scale: divide the products of queries and keys by sqrt(D)."""
    return causal_attention(q * np.sqrt(q.shape[1]), k, v)


def _masked_with_zero(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A score of 0 still has the weight exp(0) = 1 in the softmax: give the later tokens a score of minus infinity."""
    scores = q @ k.T / np.sqrt(q.shape[1])
    return _softmax(np.where(np.tri(len(q), dtype=bool), scores, 0)) @ v


def _masked_after_softmax(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The weights of a token do not add up to 1: mask the scores before the softmax, not the weights after it."""
    return np.tril(_softmax(q @ k.T / np.sqrt(q.shape[1]))) @ v


def _over_queries(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The softmax runs over the queries: normalise each row, over the keys."""
    scores = np.where(np.tri(len(q), dtype=bool), q @ k.T / np.sqrt(q.shape[1]), -np.inf)
    return _softmax(scores.T).T @ v


def _sequences(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    return [
        (2 * rng.standard_normal((T, D)), rng.standard_normal((T, D)), rng.standard_normal((T, C)))
        for T, D, C in ((5, 4, 4), (8, 16, 3), (3, 2, 2))
    ]


def _weights(answer: Answer) -> "Image.Image":
    """The attention weights: the answer where the values are the identity."""
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 12, 8))  # (12, 8) each
    weights = answer(q, k, np.eye(12))  # (12, 12)
    figure = new_figure(4.6, 3.8)
    axis = figure.subplots()
    shown = axis.imshow(np.where(weights > 0, weights, np.nan), cmap="magma", vmin=0, vmax=1)
    axis.set(
        title="attention weights p[i, j] (white: 0)", xlabel="token j, attended to", ylabel="token i, which attends"
    )
    axis.set(xticks=range(12), yticks=range(12))
    figure.colorbar(shown, label="weight")
    return rendered(figure)


EXERCISES = (
    Exercise(
        "Causal attention",
        10,
        causal_attention,
        _sequences,
        (_without_mask, _later_tokens, _without_scale, _masked_with_zero, _masked_after_softmax, _over_queries),
        _weights,
    ),
)
