"""Differentiable operations, forward beside backward. Images are NHWC, convolution weights OHWI.

The classes implement each operation on raw arrays; the functions below them are the interface. Further ones are
in `normalisation.py`, `gaussian.py`, `losses.py` and `pooling.py`. `minidiff_kernels/reference/` documents what the
kernels compute.
"""

import numpy as np

from minidiff.engine.rng import Rng
from minidiff.engine.tensor import Function, Tensor


class Add(Function):
    def forward(self, a, b):
        return self.backend.add(a, b) if a.shape == b.shape else a + b

    def backward(self, dy):
        return dy, dy


def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b, with broadcasting."""
    return Add()(a, b)


class Mul(Function):
    keeps = (0, 1)

    def forward(self, a, b):
        return a * b

    def backward(self, dy):
        return dy * self.input(1), dy * self.input(0)


def mul(a: Tensor, b: Tensor) -> Tensor:
    """a * b, elementwise, with broadcasting."""
    return Mul()(a, b)


class Affine(Function):
    def __init__(self, scale, offset):
        self.scale, self.offset = scale, offset

    def forward(self, x):
        return self.scale * x + self.offset

    def backward(self, dy):
        return (self.scale * dy,)


def affine(x: Tensor, scale: float, offset: float = 0) -> Tensor:
    """scale x + offset for scalars scale and offset; returns x itself if scale is 1 and offset 0."""
    return x if (scale, offset) == (1, 0) else Affine(scale, offset)(x)


class Reshape(Function):
    def __init__(self, shape):
        self.shape = shape

    def forward(self, x):
        self.x_shape = x.shape
        return x.reshape(self.shape)

    def backward(self, dy):
        return (dy.reshape(self.x_shape),)


def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x with another shape; one length may be -1, inferred from the size."""
    return Reshape(shape)(x)


class Pointwise(Function):
    keeps = (0,)

    def __init__(self, op):
        self.op = op

    def forward(self, x):
        return getattr(self.backend, self.op)(x)

    def backward(self, dy):
        return (getattr(self.backend, f"{self.op}_backward")(dy, self.input(0)),)


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x)."""
    return Pointwise("silu")(x)


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), Phi the cumulative distribution function of N(0, 1) (Hendrycks & Gimpel 2016)."""
    return Pointwise("gelu")(x)


class Conv2d(Function):
    half = (1,)
    keeps = (0, 1)

    def __init__(self, stride, pad):
        self.stride, self.pad = stride, pad

    def forward(self, x, w, bias, add):
        return self.backend.conv2d(x, w, bias, self.stride, self.pad, add)

    def backward(self, dy):
        needed = self.needs(0), self.needs(1) or self.needs(2)
        x = self.input(0) if needed[1] else self.blank(0, dy.dtype)
        dx, dw, dbias = self.backend.conv2d_backward(dy, x, self.input(1), self.stride, self.pad, *needed)
        return dx, dw, dbias, dy


def conv2d(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    pad: tuple[int, ...] = (0, 0, 0, 0),
    add: Tensor | None = None,
) -> Tensor:
    """Convolution (cross-correlation) of x (N, H, W, C) with w (O, KH, KW, C) -> (N, P, Q, O).

    pad: zeros at (top, bottom, left, right). add: added to the output in the same pass, (N, 1, 1, O) or the
    output's shape: the projected time embedding, or the residual. Raises ValueError if the shapes do not match.
    """
    check_conv2d(x, w, bias, stride, pad, add)
    return Conv2d(stride, pad)(x, w, bias, add)


def check_conv2d(x: Tensor, w: Tensor, bias: Tensor | None, stride: int, pad: tuple[int, ...], add: Tensor | None):
    """Raises ValueError if the shapes of a convolution's arguments do not match."""
    (N, H, W, C), (O, KH, KW, I), (top, bottom, left, right) = x.shape, w.shape, pad
    if C != I:
        raise ValueError(f"conv2d: the input has {C} channels, the weight expects {I}")
    if H + top + bottom < KH or W + left + right < KW:
        raise ValueError(f"conv2d: the {KH}x{KW} kernel is larger than the padded {H}x{W} input")
    if bias is not None and bias.shape != (O,):
        raise ValueError(f"conv2d: the bias has shape {bias.shape}, the weight has {O} outputs")
    P = (H + top + bottom - KH) // stride + 1
    Q = (W + left + right - KW) // stride + 1
    if add is not None and add.shape not in ((N, P, Q, O), (N, 1, 1, O)):
        raise ValueError(f"conv2d: cannot add {add.shape} to an output of {(N, P, Q, O)}")


class Linear(Function):
    half = (1,)
    keeps = (0, 1)

    def forward(self, x, w, bias, add):
        y = self.backend.conv2d(_row(x), _taps(w), bias, 1, (0, 0, 0, 0), None if add is None else _row(add))
        return y.reshape(*x.shape[:-1], len(w))

    def backward(self, dy):
        needed = self.needs(0), self.needs(1) or self.needs(2)
        x = self.input(0) if needed[1] else self.blank(0, dy.dtype)
        return *self.gradients(dy, x, self.input(1), *needed), dy

    def gradients(self, dy, x, w, need_dx, need_dw):
        dx, dw, dbias = self.backend.conv2d_backward(_row(dy), _row(x), _taps(w), 1, (0, 0, 0, 0), need_dx, need_dw)
        return None if dx is None else dx.reshape(x.shape), None if dw is None else dw[:, 0, 0], dbias


def _row(x):
    """(..., C) as one image of M pixels in a single row, (1, 1, M, C)."""
    return x.reshape(1, 1, -1, x.shape[-1])


def _taps(w):
    """(O, I) as the weight of a 1x1 convolution."""
    return w.reshape(len(w), 1, 1, -1)


def linear(x: Tensor, w: Tensor, bias: Tensor | None = None, add: Tensor | None = None) -> Tensor:
    """y = x w^T + bias + add, computed as a 1x1 convolution.

    x (..., I)   w (O, I)   bias (O,)   add, y (..., O). Raises ValueError if the shapes do not match.
    """
    check_linear(x.shape, w, bias, add)
    return Linear()(x, w, bias, add)


def check_linear(x_shape: tuple[int, ...], w: Tensor, bias: Tensor | None, add: Tensor | None) -> None:
    """Raises ValueError if the shapes of a linear layer's arguments do not match."""
    *lead, C = x_shape
    O, I = w.shape
    if C != I:
        raise ValueError(f"linear: the input has {C} channels, the weight expects {I}")
    if bias is not None and bias.shape != (O,):
        raise ValueError(f"linear: the bias has shape {bias.shape}, the weight has {O} outputs")
    if add is not None and add.shape != (*lead, O):
        raise ValueError(f"linear: cannot add {add.shape} to an output of {(*lead, O)}")


class Attention(Function):
    keeps = (0, 1, 2)

    def __init__(self, causal):
        self.causal = causal

    def forward(self, q, k, v):
        o, lse = self.backend.attention(q, k, v, self.causal)
        self.results = o, lse
        return o

    def backward(self, dy):
        (q, k, v), (o, lse) = map(self.input, self.keeps), self.results
        return self.backend.attention_backward(dy, q, k, v, o, lse, self.causal)


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for every head: q (N, T, heads, D), k and v (N, S, heads, D) -> (N, T, heads, D).

    causal: query t attends to keys 0..t only. Raises ValueError if the shapes do not match.
    """
    N, _, *head = q.shape
    M, _, *head_k = k.shape
    if N != M or head != head_k or k.shape != v.shape:
        raise ValueError(f"attention: q {q.shape}, k {k.shape} and v {v.shape} do not match")
    return Attention(causal)(q, k, v)


class UpsampleNearest(Function):
    keeps = (0,)
    recomputes = True

    def forward(self, x):
        return self.backend.upsample_nearest(x)

    def backward(self, dy):
        return (self.backend.upsample_nearest_backward(dy),)


def upsample_nearest(x: Tensor, size: tuple[int, ...] | None = None) -> Tensor:
    """Nearest-neighbour upsampling by 2: (N, H, W, C) -> (N, 2H, 2W, C), cropped to size (H', W') if it is given."""
    y = UpsampleNearest()(x)
    return y if size in (None, y.shape[1:3]) else Slice((slice(None), slice(size[0]), slice(size[1])))(y)


class Concat(Function):
    keeps = (0, 1)
    recomputes = True

    def forward(self, a, b):
        self.channels = a.shape[-1]
        return self.backend.concat(a, b)

    def backward(self, dy):
        return self.backend.concat_backward(dy, self.channels)


def concat(a: Tensor, b: Tensor) -> Tensor:
    """Concatenation along the channels: (..., A), (..., B) -> (..., A + B)."""
    return Concat()(a, b)


class Slice(Function):
    def __init__(self, index):
        self.index = index

    def forward(self, x):
        self.x_shape = x.shape
        return x[self.index].copy()

    def backward(self, dy):
        dx = self.backend.xp.zeros(self.x_shape, dy.dtype)
        dx[self.index] = dy
        return (dx,)


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """First and second half of the channels: (..., 2 C) -> (..., C), (..., C). Raises ValueError if odd."""
    C, odd = divmod(x.shape[-1], 2)
    if odd:
        raise ValueError(f"split: an odd number of channels, {x.shape[-1]}")
    return Slice((..., slice(C)))(x), Slice((..., slice(C, None)))(x)


class Embedding(Function):
    half = (0,)

    def __init__(self, index):
        self.index = index

    def forward(self, table):
        self.rows, embedding = len(table), self.backend.embedding
        return self.float32(table[self.index]) if table.dtype == np.float16 else embedding(table, self.index)

    def backward(self, dy):
        return (self.backend.embedding_backward(dy, self.index, self.rows),)


def embedding(table: Tensor, index: np.ndarray) -> Tensor:
    """Row index[n] of table (K, D) for every n -> (N, D).

    Raises TypeError if index is not (N,) integers, IndexError unless 0 <= index < K.
    """
    index = np.asarray(index)
    if index.dtype.kind not in "iu" or index.ndim != 1:
        raise TypeError(f"embedding: the index must be (N,) integers, not {index.shape} {index.dtype}")
    if index.size and not (0 <= index.min() and index.max() < table.shape[0]):
        raise IndexError(f"embedding: index {index.min()}..{index.max()}, the table has {table.shape[0]} rows")
    return Embedding(index.astype(np.int64))(table)


def dropout(x: Tensor, p: float, rng: Rng | None = None) -> Tensor:
    """Each element 0 with probability p, else x / (1 - p) (Srivastava et al. 2014); x itself if rng is None."""
    if rng is None or p == 0:
        return x
    keep = rng.integers(0, 1 << 24, x.shape) >= p * (1 << 24)
    return mul(x, Tensor(keep / np.float32(1 - p), x.backend))
