"""Losses: mean squared error, of all elements or of each sample, and cross-entropy."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minidiff.engine.tensor import Function, Tensor


class MSE(Function):
    def __init__(self, target, weight, each=None):
        self.target, self.weight, self.each = target, weight, each

    def forward(self, prediction):
        self.error = prediction - self.backend.asarray(self.target)
        self.weighted = self.error if self.weight is None else self.error * self.backend.asarray(self.weight)
        products = self.error * self.weighted
        if self.each is not None:
            squares = products if self.weight is None else self.error * self.error
            self.each(squares.reshape(len(squares), -1).mean(1))
        return products.mean()

    def backward(self, dy):
        return (self.weighted * (dy * 2 / self.error.size),)


def mse(
    prediction: Tensor,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    each: Callable[[Any], object] | None = None,
) -> Tensor:
    """Mean over all elements of weight (prediction - target)^2, a scalar.

    weight: (N, 1, 1, ...), one per sample; None: 1. each(errors) is called with the mean of (prediction - target)^2 of
    each sample, an array (N,) of the backend that is not differentiated.
    Raises ValueError if a shape does not match: broadcasting would hide a mistake.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"mse: prediction {prediction.shape} and target {target.shape} differ in shape")
    if weight is not None and weight.shape != (prediction.shape[0],) + (1,) * (len(prediction.shape) - 1):
        raise ValueError(f"mse: weight {weight.shape} for a prediction {prediction.shape}: give (N, 1, 1, ...)")
    return MSE(target, weight, each)(prediction)


class SquaredErrors(Function):
    def __init__(self, target):
        self.target = target

    def forward(self, prediction):
        self.error = prediction - self.backend.asarray(self.target)
        return (self.error**2).reshape(len(self.error), -1).mean(1)

    def backward(self, dy):
        rows = dy.reshape(-1, *[1] * (self.error.ndim - 1))  # (N, 1, 1, ...)
        return (self.error * (rows * 2 * len(dy) / self.error.size),)


def squared_errors(prediction: Tensor, target: np.ndarray) -> Tensor:
    """Mean of (prediction - target)^2 over the elements of each sample: (N, ...) -> (N,).

    Raises ValueError if the shapes differ.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"squared_errors: prediction {prediction.shape} and target {target.shape} differ in shape")
    return SquaredErrors(target)(prediction)


class WeightedMean(Function):
    def __init__(self, weight):
        self.weight = weight

    def forward(self, x):
        self.coefficients = self.backend.asarray(self.weight / np.float32(len(x)))
        return (x * self.coefficients).sum()

    def backward(self, dy):
        return (self.coefficients * dy,)


def weighted_mean(x: Tensor, weight: np.ndarray | None = None) -> Tensor:
    """Mean of weight x, a scalar; x and weight (N,), None: 1. Raises ValueError if the shapes differ."""
    weight = np.ones(x.shape, np.float32) if weight is None else weight
    if weight.shape != x.shape:
        raise ValueError(f"weighted_mean: weight {weight.shape} for x {x.shape}")
    return WeightedMean(weight)(x)


class CrossEntropy(Function):
    def __init__(self, labels):
        self.labels = labels

    def forward(self, logits):
        shifted = logits - logits.max(1, keepdims=True)
        log_p = shifted - self.backend.xp.log(self.backend.xp.exp(shifted).sum(1, keepdims=True))  # (N, K)
        self.log_p = log_p
        self.rows = self.backend.xp.arange(len(logits))
        return -log_p[self.rows, self.labels].mean()

    def backward(self, dy):
        dx = self.backend.xp.exp(self.log_p)
        dx[self.rows, self.labels] -= 1
        return (dx * (dy / len(dx)),)


def cross_entropy(logits: Tensor, labels: np.ndarray) -> Tensor:
    """Mean over n of -log softmax(logits[n])[labels[n]], a scalar.

    logits (N, K), labels (N,) integers. Raises ValueError if a shape or type differs, IndexError unless 0 <= label < K.
    """
    labels = np.asarray(labels)
    if len(logits.shape) != 2 or labels.shape != logits.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(f"cross_entropy: logits {logits.shape} and labels {labels.shape} {labels.dtype} do not match")
    if labels.size and not (0 <= labels.min() and labels.max() < logits.shape[1]):
        raise IndexError(f"cross_entropy: labels {labels.min()}..{labels.max()} for {logits.shape[1]} classes")
    return CrossEntropy(labels)(logits)
