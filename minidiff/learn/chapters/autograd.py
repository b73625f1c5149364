"""Exercises of chapter 6: the backward passes of convolution, group normalisation and attention, and AdamW."""

from typing import Any

import numpy as np

from minidiff.learn.exercise import Exercise

EPS = 1e-5  # of the normalisation
ADAM_EPS = 1e-8


def _padded(x: np.ndarray, pad: int) -> np.ndarray:
    return np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))


def conv2d_backward(dy: np.ndarray, x: np.ndarray, w: np.ndarray, stride: int, pad: int) -> tuple[np.ndarray, ...]:
    """The gradients of a convolution y[n, p, q] = sum over i, j of w[:, i, j] @ xp[n, s p + i, s q + j], plus a bias.

    xp is x with `pad` zeros on every side, s the stride.

    dy      gradient with respect to y, (N, P, Q, O)
    x       input, (N, H, W, C)
    w       weight, (O, KH, KW, C)

    Returns dx (N, H, W, C), dw (O, KH, KW, C) and dbias (O,).
    """
    _, H, W, _ = x.shape
    _, P, Q, _ = dy.shape
    xp = _padded(x, pad)
    dxp, dw = np.zeros_like(xp), np.zeros_like(w)
    for i, j in np.ndindex(w.shape[1:3]):
        rows, columns = slice(i, i + stride * P, stride), slice(j, j + stride * Q, stride)
        dxp[:, rows, columns] += dy @ w[:, i, j]  # (N, P, Q, O) @ (O, C)
        dw[:, i, j] = np.einsum("npqo,npqc->oc", dy, xp[:, rows, columns])
    return dxp[:, pad : pad + H, pad : pad + W], dw, dy.sum((0, 1, 2))


def _kernel_flipped(dy: np.ndarray, x: np.ndarray, w: np.ndarray, stride: int, pad: int) -> tuple[np.ndarray, ...]:
    """dx has the kernel the wrong way round: tap (i, j) of w sends dy[p, q] back to the pixel s p + i, s q + j."""
    _, dw, dbias = conv2d_backward(dy, x, w, stride, pad)
    return conv2d_backward(dy, x, w[:, ::-1, ::-1], stride, pad)[0], dw, dbias


def _not_cropped(dy: np.ndarray, x: np.ndarray, w: np.ndarray, stride: int, pad: int) -> tuple[np.ndarray, ...]:
    """dx has the size of the padded input: the gradient of the zeros around x is cut off."""
    _, dw, dbias = conv2d_backward(dy, x, w, stride, pad)
    return conv2d_backward(dy, _padded(x, pad), w, stride, 0)[0], dw, dbias


def _mean_over_images(dy: np.ndarray, x: np.ndarray, w: np.ndarray, stride: int, pad: int) -> tuple[np.ndarray, ...]:
    """dw and dbias are sums over the images of the batch, not means: the loss already holds the 1 / N."""
    dx, dw, dbias = conv2d_backward(dy, x, w, stride, pad)
    return dx, dw / len(x), dbias / len(x)


def _ignores_padding(dy: np.ndarray, x: np.ndarray, w: np.ndarray, stride: int, pad: int) -> tuple[np.ndarray, ...]:
    """dw pairs dy with the wrong pixels: shift by the padding, since tap (i, j) reads the padded input at s p + i."""
    dx, _, dbias = conv2d_backward(dy, x, w, stride, pad)
    shifted = np.roll(x, (-pad, -pad), (1, 2))
    return dx, conv2d_backward(dy, shifted, w, stride, pad)[1], dbias


def _convolutions(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    found = []
    for stride, size in ((1, 6), (2, 7)):
        x = rng.standard_normal((2, size, size, 3))
        w = rng.standard_normal((4, 3, 3, 3))
        side = (size + 2 - 3) // stride + 1
        found.append((rng.standard_normal((2, side, side, 4)), x, w, stride, 1))
    return found


def group_norm_backward(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, groups: int) -> tuple[np.ndarray, ...]:
    """The gradients of group normalisation y = xhat weight + bias, xhat = (x - mean) / sqrt(var + 1e-5).

    mean and var are over all positions and the C / groups neighbouring channels of a group, for each image.

    dy      gradient with respect to y, (N, H, W, C)
    x       input, (N, H, W, C)
    weight  (C,)

    Returns dx (N, H, W, C), dweight (C,) and dbias (C,).
    """
    split = (len(x), -1, groups, x.shape[-1] // groups)  # (N, positions, G, C / G)
    xg, g = x.reshape(split), (dy * weight).reshape(split)
    rstd = 1 / np.sqrt(xg.var((1, 3), keepdims=True) + EPS)  # (N, 1, G, 1)
    xhat = (xg - xg.mean((1, 3), keepdims=True)) * rstd
    mean_g = g.mean((1, 3), keepdims=True)
    mean_gx = (g * xhat).mean((1, 3), keepdims=True)
    dx = rstd * (g - mean_g - xhat * mean_gx)
    dweight = (dy * xhat.reshape(x.shape)).sum((0, 1, 2))
    return dx.reshape(x.shape), dweight, dy.sum((0, 1, 2))


def _group_terms(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, groups: int) -> tuple[np.ndarray, ...]:
    """rstd, xhat and g of each group, (N, 1 or positions, G, 1 or C / G)."""
    split = (len(x), -1, groups, x.shape[-1] // groups)
    xg, g = x.reshape(split), (dy * weight).reshape(split)
    rstd = 1 / np.sqrt(xg.var((1, 3), keepdims=True) + EPS)
    return rstd, (xg - xg.mean((1, 3), keepdims=True)) * rstd, g


def _statistics_constant(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, groups: int) -> tuple[np.ndarray, ...]:
    """dx treats mean and variance as constants; they depend on x too, which subtracts two means from g."""
    rstd, _, g = _group_terms(dy, x, weight, groups)
    return (rstd * g).reshape(x.shape), *group_norm_backward(dy, x, weight, groups)[1:]


def _variance_constant(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, groups: int) -> tuple[np.ndarray, ...]:
    """The gradient through the mean is there, that through the variance is missing: - xhat <g xhat>."""
    rstd, _, g = _group_terms(dy, x, weight, groups)
    dx = rstd * (g - g.mean((1, 3), keepdims=True))
    return dx.reshape(x.shape), *group_norm_backward(dy, x, weight, groups)[1:]


def _without_weight(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, groups: int) -> tuple[np.ndarray, ...]:
    """dx lacks the weight: the gradient with respect to xhat is dy weight, not dy."""
    dx = group_norm_backward(dy, x, np.ones_like(weight), groups)[0]
    return dx, *group_norm_backward(dy, x, weight, groups)[1:]


def _weight_times_x(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, groups: int) -> tuple[np.ndarray, ...]:
    """dweight multiplies dy by x; the weight multiplies the normalised xhat."""
    dx, _, dbias = group_norm_backward(dy, x, weight, groups)
    return dx, (dy * x).sum((0, 1, 2)), dbias


def _normalisations(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    shape = (2, 4, 5, 6)
    return [
        (rng.standard_normal(shape), 2 * rng.standard_normal(shape) + 1, rng.uniform(0.5, 2, 6), groups)
        for groups in (1, 3)
    ]


def attention_backward(do: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
    """The gradients of attention o = p v, p = softmax(q k^T / sqrt(D)) over the keys, for one head of one image.

    do      gradient with respect to o, (T, D)
    q       queries, (T, D)
    k, v    keys and values, (S, D)

    Returns dq (T, D), dk (S, D) and dv (S, D).
    """
    scale = q.shape[1] ** -0.5
    p = _softmax(q @ k.T * scale)  # (T, S)
    dp = do @ v.T  # (T, S)
    ds = p * (dp - (p * dp).sum(1, keepdims=True))  # (T, S)
    return ds @ k * scale, ds.T @ q * scale, p.T @ do


def _softmax(s: np.ndarray) -> np.ndarray:
    p = np.exp(s - s.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def _without_scale(do: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
    """dq and dk lack the factor 1 / sqrt(D), which stands between q k^T and the softmax."""
    dq, dk, dv = attention_backward(do, q, k, v)
    root = q.shape[1] ** 0.5
    return dq * root, dk * root, dv


def _softmax_elementwise(do: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
    """p (1 - p) is the derivative of one probability by its own score; the row's other scores matter too."""
    scale = q.shape[1] ** -0.5
    p = _softmax(q @ k.T * scale)
    ds = p * (1 - p) * (do @ v.T)
    return ds @ k * scale, ds.T @ q * scale, p.T @ do


def _without_row_sum(do: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
    """ds = p dp is the gradient of exp alone; the softmax's normalisation subtracts the row's sum of p dp from dp."""
    scale = q.shape[1] ** -0.5
    p = _softmax(q @ k.T * scale)
    ds = p * (do @ v.T)
    return ds @ k * scale, ds.T @ q * scale, p.T @ do


def _sum_over_queries(do: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
    """The sum of p dp is over the keys of a query, axis 1, where the softmax ran; this one is over the queries."""
    scale = q.shape[1] ** -0.5
    p = _softmax(q @ k.T * scale)
    dp = do @ v.T
    ds = p * (dp - (p * dp).sum(0, keepdims=True))
    return ds @ k * scale, ds.T @ q * scale, p.T @ do


def _heads(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    return [
        (*rng.standard_normal((2, tokens, 4)), *rng.standard_normal((2, keys, 4))) for tokens, keys in ((5, 5), (3, 7))
    ]


def adamw_step(
    p: np.ndarray,
    g: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    step: int,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> tuple[np.ndarray, ...]:
    """One step of AdamW (Loshchilov & Hutter 2019, algorithm 2).

    p, g         weights and their gradient, (P,)
    m, v         first and second moment before the step, (P,)
    step         number of this step, counted from 1
    betas        decays of m and v

    The decay multiplies p by 1 - lr weight_decay; then lr mhat / (sqrt(vhat) + 1e-8) is subtracted, mhat and vhat
    being m and v corrected for their bias towards 0. The arguments are not changed.

    Returns p, m and v after the step, (P,) each.
    """
    beta1, beta2 = betas
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    mhat = m / (1 - beta1**step)
    vhat = v / (1 - beta2**step)
    return p * (1 - lr * weight_decay) - lr * mhat / (np.sqrt(vhat) + ADAM_EPS), m, v


def _no_bias_correction(p, g, m, v, step, lr, betas, weight_decay):
    """The moments are not corrected: they start at 0, so divide m by 1 - beta1^step and v by 1 - beta2^step."""
    _, m, v = adamw_step(p, g, m, v, step, lr, betas, weight_decay)
    return p * (1 - lr * weight_decay) - lr * m / (np.sqrt(v) + ADAM_EPS), m, v


def _decay_in_gradient(p, g, m, v, step, lr, betas, weight_decay):
    """The decay is added to the gradient and so divided by sqrt(vhat); AdamW decouples it and shrinks p itself."""
    return adamw_step(p, g + weight_decay * p, m, v, step, lr, betas, 0.0)


def _decay_without_rate(p, g, m, v, step, lr, betas, weight_decay):
    """The decay is multiplied by the learning rate: p shrinks by lr weight_decay, not by weight_decay."""
    return adamw_step(p, g, m, v, step, lr, betas, weight_decay / lr)


def _without_root(p, g, m, v, step, lr, betas, weight_decay):
    """The square root of vhat is missing: v is a mean of squares, its root has the scale of the gradient."""
    _, m, v = adamw_step(p, g, m, v, step, lr, betas, weight_decay)
    mhat, vhat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return p * (1 - lr * weight_decay) - lr * mhat / (vhat + ADAM_EPS), m, v


def _weights_and_moments(rng: np.random.Generator) -> list[tuple[Any, ...]]:
    found = []
    for step, betas in ((1, (0.9, 0.999)), (7, (0.8, 0.99))):
        p, g = rng.standard_normal((2, 20))
        m = np.zeros(20) if step == 1 else 0.1 * rng.standard_normal(20)
        v = np.zeros(20) if step == 1 else rng.uniform(0.01, 0.1, 20)
        found.append((p, g, m, v, step, 0.02, betas, 0.1))
    return found


EXERCISES = (
    Exercise(
        "Convolution backward",
        6,
        conv2d_backward,
        _convolutions,
        (_kernel_flipped, _not_cropped, _mean_over_images, _ignores_padding),
    ),
    Exercise(
        "GroupNorm backward",
        6,
        group_norm_backward,
        _normalisations,
        (_statistics_constant, _variance_constant, _without_weight, _weight_times_x),
    ),
    Exercise(
        "Attention backward",
        6,
        attention_backward,
        _heads,
        (_without_scale, _softmax_elementwise, _without_row_sum, _sum_over_queries),
    ),
    Exercise(
        "AdamW step",
        6,
        adamw_step,
        _weights_and_moments,
        (_no_bias_correction, _decay_in_gradient, _decay_without_rate, _without_root),
    ),
)
