"""Elementwise activations and addition, sums that undo broadcasting, and embedding lookup."""

import math

import numpy as np

erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x):
    """1 / (1 + exp(-x)); written with tanh, which cannot overflow."""
    return 0.5 * np.tanh(0.5 * x) + 0.5


def silu(x):
    """y = x sigmoid(x) (Elfwing et al. 2017, arXiv:1702.03118), any shape."""
    return x * sigmoid(x)


def silu_backward(dy, x):
    """dx = dy s (1 + x (1 - s)), s = sigmoid(x)."""
    s = sigmoid(x)
    return dy * s * (1 + x * (1 - s))


def normal_cdf(x):
    """Phi(x) = (1 + erf(x / sqrt(2))) / 2, the standard normal distribution function."""
    return (0.5 * (1 + erf(x * 0.5**0.5))).astype(x.dtype)


def gelu(x):
    """y = x Phi(x) (Hendrycks & Gimpel 2016, arXiv:1606.08415), any shape."""
    return x * normal_cdf(x)


def gelu_backward(dy, x):
    """dx = dy (Phi(x) + x phi(x)), phi(x) = exp(-x^2 / 2) / sqrt(2 pi)."""
    return dy * (normal_cdf(x) + x * np.exp(-0.5 * x * x) * x.dtype.type((2 * math.pi) ** -0.5))


def geglu(x):
    """y = h gelu(gate) (Shazeer 2020, arXiv:2002.05202), h and gate the halves of x: (..., 2C) -> (..., C)."""
    h, gate = np.split(x, 2, axis=-1)
    return h * gelu(gate)


def geglu_backward(dy, x, y=None):
    """dx (..., 2C): dy gelu(gate) for h, then gelu's gradient of dy h for gate.

    In y, which may be dy, the output once more, for who did not keep it.
    """
    h, gate = np.split(x, 2, axis=-1)
    dx = np.concatenate([dy * gelu(gate), gelu_backward(dy * h, gate)], -1)
    if y is not None:
        y[...] = geglu(x)
    return dx


def add(a, b):
    """a + b, two arrays of one shape."""
    return a + b


def sum_to(dy, shape):
    """dy summed over every axis along which `shape` was broadcast; the result has that shape."""
    lead = dy.ndim - len(shape)
    ones = tuple(i + lead for i, n in enumerate(shape) if n == 1)
    return precise_sum(dy, (*range(lead), *ones)).reshape(shape)


def precise_sum(a, axes):
    """The sum over some axes in float64, since NumPy adds float32 one by one along a leading axis."""
    return a.sum(axes, dtype=np.float64).astype(a.dtype)


def embedding(table, index):
    """y[n] = table[index[n]]; table (K, D), index (N,) int, y (N, D)."""
    return table[index]


def embedding_backward(dy, index, rows):
    """dtable (rows, D): dtable[index[n]] += dy[n]."""
    dtable = np.zeros((rows, dy.shape[1]), dy.dtype)
    np.add.at(dtable, index, dy)
    return dtable
