"""Two-dimensional convolution as a sum of matrix products, one for each tap (i, j) of the kernel.

    y[n, p, q, :] = bias + add[n, p, q, :] + sum over i, j of  w[:, i, j, :] @ xp[n, s p + i, s q + j, :]

x (N, H, W, C)   w (O, KH, KW, C)   bias (O,)   y (N, P, Q, O)   s: stride
xp: x padded with zeros, pad = (top, bottom, left, right), so P = (H + top + bottom - KH) // s + 1, Q likewise.
"""

import numpy as np

from .elementwise import precise_sum


def output_size(x_shape, w_shape, stride, pad):
    """P, Q: height and width of the output."""
    (_, H, W, _), (_, KH, KW, _), (top, bottom, left, right) = x_shape, w_shape, pad
    return (H + top + bottom - KH) // stride + 1, (W + left + right - KW) // stride + 1


def zero_padded(x, pad):
    """x padded with zeros, (N, H + top + bottom, W + left + right, C)."""
    top, bottom, left, right = pad
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))


def tap_view(xp, i, j, stride, P, Q):
    """The input pixel of tap (i, j) for each output pixel: a strided view of xp, (N, P, Q, C)."""
    return xp[:, i : i + stride * P : stride, j : j + stride * Q : stride]


def conv2d(x, w, bias=None, stride=1, pad=(0, 0, 0, 0), add=None):
    """y (N, P, Q, O), by the equation at the top of this file.

    add: a time embedding (N, 1, 1, O) or a residual (N, P, Q, O). w may be float16, and is widened.
    """
    P, Q = output_size(x.shape, w.shape, stride, pad)
    xp, w = zero_padded(x, pad), w.astype(np.result_type(w, x), copy=False)
    y = np.zeros((len(x), P, Q, len(w)), x.dtype)
    for i, j in np.ndindex(w.shape[1:3]):
        y += tap_view(xp, i, j, stride, P, Q) @ w[:, i, j].T  # (N, P, Q, C) @ (C, O)
    if bias is not None:
        y += bias
    if add is not None:
        y += add
    return y


def conv2d_backward(dy, x, w, stride=1, pad=(0, 0, 0, 0), need_dx=True, need_dw=True):
    """The gradients of conv2d: dx, dw, dbias, None if not needed. The gradient of `add` is dy itself.

    Without dw, which brings dbias with it, of x only the shape matters.

    dxp[n, s p + i, s q + j, :] += w[:, i, j, :].T @ dy[n, p, q, :]
    dw[:, i, j, :]  = sum over n, p, q of  dy[n, p, q, :] outer xp[n, s p + i, s q + j, :]
    dbias           = sum over n, p, q of  dy[n, p, q, :]
    """
    _, P, Q, _ = dy.shape
    xp = zero_padded(x, pad)
    dxp, dw = np.zeros_like(xp), np.empty_like(w)
    for i, j in np.ndindex(w.shape[1:3]):
        if need_dw:
            dw[:, i, j] = np.tensordot(dy, tap_view(xp, i, j, stride, P, Q), axes=((0, 1, 2), (0, 1, 2)))
        if need_dx:
            tap_view(dxp, i, j, stride, P, Q)[...] += dy @ w[:, i, j]  # (N, P, Q, O) @ (O, C)
    (_, H, W, _), (top, _, left, _) = x.shape, pad
    dx = np.ascontiguousarray(dxp[:, top : top + H, left : left + W]) if need_dx else None
    return (dx, dw, precise_sum(dy, (0, 1, 2))) if need_dw else (dx, None, None)
