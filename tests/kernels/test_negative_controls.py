"""The suite bites: kernels with one small mistake each, and the very checks of the suite, which must refuse them."""

import re
from dataclasses import replace

import numpy as np
import pytest
from against_torch import check, check_nan
from kernel_cases import (
    adamw,
    add,
    attend,
    concat,
    conv,
    embedding,
    geglu,
    gelu,
    grad_norm,
    norm,
    silu,
    sum_to,
    upsample,
)
from minidiff_kernels.reference.elementwise import normal_cdf

CONV = conv((2, 5, 7, 8), (17, 3, 3, 8), pad=(1, 1, 1, 1), add="temb")
HALVING = conv((2, 8, 8, 8), (8, 3, 3, 8), stride=2, pad=(0, 1, 0, 1))
NORM, NORM_SILU, LAYER = norm((2, 5, 7, 8), 4), norm((2, 5, 7, 8), 4, silu=True), norm((40, 1, 96), 1)
ATTENTION, CAUSAL = attend(2, 9, 12, 2, 8), attend(2, 9, 9, 2, 8, causal=True)
GELU, GEGLU = gelu(2, 5, 7, 3), geglu(2, 5, 7, 6)
SILU, ADD, CONCAT = silu(2, 5, 7, 3), add(2, 5, 7, 3), concat(2, 5, 7, channels=(3, 3))
EMBEDDING, UPSAMPLE = embedding(5, 8, 20), upsample(2, 3, 4, 5)
ADAMW, CLIPPED = adamw(100), adamw(100, clip=0.1)


def takes(change):
    """The mistake is made on the way in: change(*arguments) gives the arguments that the kernel sees."""
    return lambda op: lambda *args, **kwargs: op(*change(*args), **kwargs)


def gives(change, i=None):
    """The mistake is made on the way out: in the result, or in the i-th of several."""

    def spoilt(op):
        def wrapped(*args, **kwargs):
            out = op(*args, **kwargs)
            if i is None:
                return change(out)
            return (*out[:i], change(out[i]), *out[i + 1 :])

        return wrapped

    return spoilt


def with_zeros(a, *where):
    a = a.copy()
    a[where] = 0
    return a


def one_tap_scaled(x, w, *rest):
    w = w.copy()
    w[:, 1, 2] *= 1.001
    return x, w, *rest


def without_last_pixels(op):
    """The weight gradient's sum over pixels misses its last chunk."""

    def wrapped(dy, x, w, stride, pad):
        dx, dw, dbias = op(dy, x, w, stride, pad)
        return dx, op(with_zeros(dy, -1, -1), x, w, stride, pad)[1], dbias

    return wrapped


def one_pixel_off(dy, x, w, stride, pad):
    top, bottom, left, right = pad
    return dy, x, w, stride, (bottom, top, right, left)


def without_last_row(op):
    """The sums of dweight and dbias end a row too early."""

    def wrapped(dy, *rest):
        return op(dy, *rest)[0], *op(with_zeros(dy, -1), *rest)[1:]

    return wrapped


def overwritten(op):
    """Rows that are met twice keep the last gradient only."""

    def wrapped(dy, index, rows):
        dtable = op(dy, index, rows)
        dtable[index] = dy
        return dtable

    return wrapped


def without_last_key(q, k, v, causal):
    return q, k[:, :-1].copy(), v[:, :-1].copy(), causal


def in_place(op):
    def wrapped(a, b):
        a += b
        return a

    return wrapped


def halved_in_place(g):
    g *= np.float32(0.5)
    return g


def adamw_with(**wrong):
    names = "p g m v ema norm clip lr beta1 beta2 eps weight_decay step ema_decay".split()
    return takes(lambda *args: [wrong.get(name, a) for name, a in zip(names, args, strict=True)])


def decay_in_the_gradient(p, g, m, v, ema, norm, clip, lr, beta1, beta2, eps, weight_decay, *rest):
    """Adam with L2 regularisation, which AdamW is not."""
    return p, g + weight_decay * p, m, v, ema, norm, clip, lr, beta1, beta2, eps, 0.0, *rest


MISTAKES = {
    "conv: one tap of the weights 0.1 % too large": (CONV, "conv2d", takes(one_tap_scaled)),
    "conv: the last output channel dropped": (CONV, "conv2d", gives(lambda y: with_zeros(y, ..., -1))),
    "conv: the last column dropped": (CONV, "conv2d", gives(lambda y: with_zeros(y, ..., -1, slice(None)))),
    "conv: no bias": (CONV, "conv2d", takes(lambda x, w, b, *rest: (x, w, None, *rest))),
    "conv: no time embedding": (CONV, "conv2d", takes(lambda x, w, b, s, pad, add: (x, w, b, s, pad, None))),
    "conv: a few roundings too many": (CONV, "conv2d", gives(lambda y: y * np.float32(1 + 3e-6))),
    "conv: products in half precision": (CONV, "conv2d", takes(lambda x, *rest: (x.astype("f2").astype("f4"), *rest))),
    "conv: dx a little off": (CONV, "conv2d_backward", gives(lambda dx: dx * np.float32(1.0001), 0)),
    "conv: dx of one picture dropped": (CONV, "conv2d_backward", gives(lambda dx: with_zeros(dx, 1), 0)),
    "conv: dw skips a chunk of pixels": (CONV, "conv2d_backward", without_last_pixels),
    "conv: dw of the last input channel dropped": (CONV, "conv2d_backward", gives(lambda g: with_zeros(g, ..., -1), 1)),
    "conv: dbias the mean, not the sum": (CONV, "conv2d_backward", gives(lambda g: g / np.float32(70), 2)),
    "conv: padded on the wrong side": (HALVING, "conv2d_backward", takes(one_pixel_off)),
    "norm: eps doubled": (NORM, "group_norm", takes(lambda x, w, b, G, eps, s: (x, w, b, G, 2 * eps, s))),
    "norm: variance over n - 1": (NORM, "group_norm", gives(lambda y: y * np.float32((69 / 70) ** 0.5), 0)),
    "norm: groups confused": (NORM, "group_norm", takes(lambda x, w, b, G, eps, s: (x, w, b, 2, eps, s))),
    "norm: SiLU forgotten": (NORM_SILU, "group_norm", takes(lambda x, w, b, G, eps, s: (x, w, b, G, eps, False))),
    "norm: SiLU forgotten backward": (NORM_SILU, "group_norm_backward", takes(lambda *args: (*args[:-1], False))),
    "norm: dx does not sum to zero": (NORM, "group_norm_backward", gives(lambda dx: dx + np.float32(1e-3), 0)),
    "norm: dbias a mean over pictures": (NORM, "group_norm_backward", gives(lambda g: g / np.float32(2), 2)),
    "layer norm: the last row's part in dweight dropped": (LAYER, "group_norm_backward", without_last_row),
    "layer norm: dx of a row dropped": (LAYER, "group_norm_backward", gives(lambda dx: with_zeros(dx, -1), 0)),
    "attention: no scale": (ATTENTION, "attention", takes(lambda q, k, v, c: (q * np.float32(8**0.5), k, v, c))),
    "attention: the last key ignored": (ATTENTION, "attention", takes(without_last_key)),
    "attention: lse without the largest score": (ATTENTION, "attention", gives(lambda lse: lse - lse.max(), 1)),
    "attention: dq without scale": (ATTENTION, "attention_backward", gives(lambda dq: dq * np.float32(8**0.5), 0)),
    "attention: dk of a key dropped": (ATTENTION, "attention_backward", gives(lambda g: with_zeros(g, 0, -1), 1)),
    "attention: dv of one head dropped": (ATTENTION, "attention_backward", gives(lambda g: with_zeros(g, 0, 0, 1), 2)),
    "attention: later keys seen": (CAUSAL, "attention", takes(lambda q, k, v, c: (q, k, v, False))),
    "attention: later keys seen backward": (CAUSAL, "attention_backward", takes(lambda *args: (*args[:-1], False))),
    "gelu: by tanh": (GELU, "gelu", lambda op: lambda x: x / (1 + np.exp(-1.5957691 * (x + 0.044715 * x**3)))),
    "gelu: the slope of Phi forgotten": (GELU, "gelu_backward", lambda op: lambda dy, x: dy * normal_cdf(x)),
    "geglu: the wrong half": (GEGLU, "geglu", lambda op: lambda x: op(np.roll(x, x.shape[-1] // 2, -1))),
    "geglu: gradients exchanged": (GEGLU, "geglu_backward", gives(lambda dx: np.roll(dx, dx.shape[-1] // 2, -1))),
    "silu: a few roundings too many": (SILU, "silu", gives(lambda y: y * np.float32(1 + 1e-6))),
    "silu: the slope of the sigmoid forgotten": (SILU, "silu_backward", lambda op: lambda dy, x: dy / (1 + np.exp(-x))),
    "add: one array forgotten": (ADD, "add", lambda op: lambda a, b: a.copy()),
    "add: works in place": (ADD, "add", in_place),
    "add: in float64": (ADD, "add", gives(lambda y: y.astype("f8"))),
    "add: not contiguous": (ADD, "add", gives(lambda y: np.asfortranarray(y))),
    "sum_to: the last row skipped": (sum_to((8,), (999, 8)), "sum_to", takes(lambda dy, shape: (dy[:-1], shape))),
    "embedding: the next row": (EMBEDDING, "embedding", takes(lambda table, index: (table, index - 1))),
    "embedding: gradients overwritten": (EMBEDDING, "embedding_backward", overwritten),
    "upsample: shifted": (UPSAMPLE, "upsample_nearest", gives(lambda y: np.roll(y, 1, 2))),
    "upsample: the mean of a block": (UPSAMPLE, "upsample_nearest_backward", gives(lambda dx: dx / np.float32(4))),
    "concat: the wrong way round": (CONCAT, "concat", takes(lambda a, b: (b, a))),
    "concat: gradients exchanged": (CONCAT, "concat_backward", gives(lambda pair: pair[::-1])),
    "grad_norm: the last chunk skipped": (grad_norm(100_003), "grad_norm", takes(lambda g: (g[:-3],))),
    "adamw: no bias correction": (ADAMW, "adamw", adamw_with(step=10**6)),
    "adamw: the step before": (ADAMW, "adamw", adamw_with(step=2)),
    "adamw: no clipping": (CLIPPED, "adamw", adamw_with(clip=np.inf)),
    "adamw: decay in the gradient": (ADAMW, "adamw", takes(decay_in_the_gradient)),
    "adamw: another eps": (adamw(100, eps=1e-4), "adamw", adamw_with(eps=2e-4)),
    "adamw: no moving average": (ADAMW, "adamw", adamw_with(ema_decay=1.0)),
    "adamw: the gradient scaled in place": (ADAMW, "adamw", takes(lambda p, g, *rest: (p, halved_in_place(g), *rest))),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(backend, mistake):
    case, op, spoil = MISTAKES[mistake]
    check(backend, case)
    with pytest.raises(AssertionError, match=re.escape(case.label)):
        check(replace(backend, **{op: spoil(getattr(backend, op))}), case)


SWALLOWED = {
    "conv": (CONV, "conv2d", takes(lambda x, *rest: (np.nan_to_num(x), *rest))),
    "norm": (NORM, "group_norm", gives(np.nan_to_num, 0)),
    "attention": (ATTENTION, "attention", gives(np.nan_to_num, 0)),
    "attention, backward": (ATTENTION, "attention_backward", gives(np.nan_to_num, 2)),
    "adamw": (ADAMW, "adamw", takes(lambda p, g, *rest: (p, np.nan_to_num(g), *rest))),
    "conv, spread over the batch": (CONV, "conv2d", gives(lambda y: y + 0 * y.sum())),
}


@pytest.mark.parametrize("mistake", SWALLOWED)
def test_a_lost_nan_is_found(backend, mistake):
    case, op, spoil = SWALLOWED[mistake]
    check_nan(backend, case)
    with pytest.raises(AssertionError, match="a NaN in"):
        check_nan(replace(backend, **{op: spoil(getattr(backend, op))}), case)
