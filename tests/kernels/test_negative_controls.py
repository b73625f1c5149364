"""Negative controls: kernels with one small mistake each, which the checks of the suite must reject."""

import re
from dataclasses import replace

import numpy as np
import pytest
from against_torch import check, check_nan
from kernel_cases import (
    adamw,
    add,
    attention,
    concat,
    conv,
    embedding,
    geglu,
    gelu,
    grad_norm,
    muon,
    norm,
    silu,
    sum_to,
    upsample,
)
from minidiff_kernels.reference.elementwise import normal_cdf

CONV = conv((2, 5, 7, 8), (17, 3, 3, 8), pad=(1, 1, 1, 1), add="temb")
STRIDED = conv((2, 8, 8, 8), (8, 3, 3, 8), stride=2, pad=(0, 1, 0, 1))
WIDE = conv((3, 16, 16, 32), (32, 3, 3, 32), stride=2, pad=(0, 1, 0, 1))  # Winograd
NORM, NORM_SILU, LAYER = norm((2, 5, 7, 8), 4), norm((2, 5, 7, 8), 4, silu=True), norm((40, 1, 96), 1)
ATTENTION, CAUSAL = attention(2, 9, 12, 2, 8), attention(2, 9, 9, 2, 8, causal=True)
GELU, GEGLU = gelu(2, 5, 7, 3), geglu(2, 5, 7, 6)
SILU, ADD, CONCAT = silu(2, 5, 7, 3), add(2, 5, 7, 3), concat(2, 5, 7, channels=(3, 3))
EMBEDDING, UPSAMPLE = embedding(5, 8, 20), upsample(2, 3, 4, 5)
ADAMW, CLIPPED = adamw(100), adamw(100, clip=0.1)
MUON = muon((6, 20), (9, 4))


def inputs(change):
    """A mistake in the arguments: the kernel gets change(*arguments)."""
    return lambda op: lambda *args, **kwargs: op(*change(*args), **kwargs)


def output(change, i=None):
    """A mistake in the result, or in the i-th of several results: change(result)."""

    def mistaken(op):
        def wrapped(*args, **kwargs):
            out = op(*args, **kwargs)
            if i is None:
                return change(out)
            return (*out[:i], change(out[i]), *out[i + 1 :])

        return wrapped

    return mistaken


def with_zeros(a, *where):
    a = a.copy()
    a[where] = 0
    return a


def one_tap_scaled(x, w, *rest):
    w = w.copy()
    w[:, 1, 2] *= 1.001
    return x, w, *rest


def one_tap_of_dx_scaled(dy, x, w, *rest):
    _, w = one_tap_scaled(x, w)
    return dy, x, w, *rest


def without_last_pixel_row(op):
    """dw without the last row of pixels in its sum."""

    def wrapped(dy, x, w, stride, pad):
        dx, dw, dbias = op(dy, x, w, stride, pad)
        return dx, op(with_zeros(dy, -1, -1), x, w, stride, pad)[1], dbias

    return wrapped


def one_pixel_off(dy, x, w, stride, pad):
    top, bottom, left, right = pad
    return dy, x, w, stride, (bottom, top, right, left)


def without_last_row(op):
    """dweight and dbias without the last row of the sum."""

    def wrapped(dy, *rest):
        return op(dy, *rest)[0], *op(with_zeros(dy, -1), *rest)[1:]

    return wrapped


def without_silu(op):
    """What the backward pass stores as y is the input of SiLU."""

    def wrapped(dy, x, weight, bias, mean, rstd, silu, y=None, add=None):
        gradients = op(dy, x, weight, bias, mean, rstd, silu, None, add)
        if y is not None:
            op(y, x, weight, bias, mean, rstd, False, y)
        return gradients

    return wrapped


def overwritten(op):
    """A row used twice gets the last gradient only."""

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


def scaled_in_place(g):
    g *= np.float32(0.5)
    return g


def adamw_with(**wrong):
    names = "p g m v ema norm clip lr beta1 beta2 eps weight_decay step ema_decay".split()
    return inputs(lambda *args: [wrong.get(name, a) for name, a in zip(names, args, strict=True)])


def muon_with(**wrong):
    names = "p g m ema matrices norm clip lr momentum weight_decay ema_decay".split()
    return inputs(lambda *args: [wrong.get(name, a) for name, a in zip(names, args, strict=True)])


def with_matrices(change):
    return inputs(lambda p, g, m, ema, matrices, *rest: (p, g, m, ema, change(matrices), *rest))


def decay_in_the_gradient(p, g, m, v, ema, norm, clip, lr, beta1, beta2, eps, weight_decay, *rest):
    """Adam with L2 regularisation instead of decoupled weight decay."""
    return p, g + weight_decay * p, m, v, ema, norm, clip, lr, beta1, beta2, eps, 0.0, *rest


MISTAKES = {
    "conv: one tap of the weights 0.1 % too large": (CONV, "conv2d", inputs(one_tap_scaled)),
    "conv: the last output channel dropped": (CONV, "conv2d", output(lambda y: with_zeros(y, ..., -1))),
    "conv: the last column dropped": (CONV, "conv2d", output(lambda y: with_zeros(y, ..., -1, slice(None)))),
    "conv: no bias": (CONV, "conv2d", inputs(lambda x, w, b, *rest: (x, w, None, *rest))),
    "conv: no time embedding": (CONV, "conv2d", inputs(lambda x, w, b, s, pad, add: (x, w, b, s, pad, None))),
    "conv: relative error of 3e-6": (CONV, "conv2d", output(lambda y: y * np.float32(1 + 3e-6))),
    "conv: products in half precision": (CONV, "conv2d", inputs(lambda x, *rest: (x.astype("f2").astype("f4"), *rest))),
    "conv: dx off by 1e-4": (CONV, "conv2d_backward", output(lambda dx: dx * np.float32(1.0001), 0)),
    "conv: dx of one image dropped": (CONV, "conv2d_backward", output(lambda dx: with_zeros(dx, 1), 0)),
    "conv: dw without the last row of pixels": (CONV, "conv2d_backward", without_last_pixel_row),
    "conv: dw without the last input channel": (CONV, "conv2d_backward", output(lambda g: with_zeros(g, ..., -1), 1)),
    "conv: dbias the mean, not the sum": (CONV, "conv2d_backward", output(lambda g: g / np.float32(70), 2)),
    "conv: padded on the wrong side": (STRIDED, "conv2d_backward", inputs(one_pixel_off)),
    "strided conv: one tap of the weights 0.1 % too large": (WIDE, "conv2d", inputs(one_tap_scaled)),
    "strided conv: dx with one tap 0.1 % too large": (WIDE, "conv2d_backward", inputs(one_tap_of_dx_scaled)),
    "strided conv: dw without the last row of pixels": (WIDE, "conv2d_backward", without_last_pixel_row),
    "strided conv: padded on the wrong side": (WIDE, "conv2d_backward", inputs(one_pixel_off)),
    "norm: eps doubled": (NORM, "group_norm", inputs(lambda x, w, b, G, eps, s: (x, w, b, G, 2 * eps, s))),
    "norm: variance over n - 1": (NORM, "group_norm", output(lambda y: y * np.float32((69 / 70) ** 0.5), 0)),
    "norm: wrong number of groups": (NORM, "group_norm", inputs(lambda x, w, b, G, eps, s: (x, w, b, 2, eps, s))),
    "norm: no SiLU": (NORM_SILU, "group_norm", inputs(lambda x, w, b, G, eps, s: (x, w, b, G, eps, False))),
    "norm: no SiLU backward": (NORM_SILU, "group_norm_backward", inputs(lambda *args: (*args[:6], False, *args[7:]))),
    "norm: y of the backward pass without SiLU": (NORM_SILU, "group_norm_backward", without_silu),
    "norm: what dx includes ignored": (NORM, "group_norm_backward", inputs(lambda *args: args[:8])),
    "layer norm: what dx includes ignored": (LAYER, "group_norm_backward", inputs(lambda *args: args[:8])),
    "norm: dx does not sum to zero": (NORM, "group_norm_backward", output(lambda dx: dx + np.float32(1e-3), 0)),
    "norm: dbias a mean over images": (NORM, "group_norm_backward", output(lambda g: g / np.float32(2), 2)),
    "layer norm: dweight without the last row": (LAYER, "group_norm_backward", without_last_row),
    "layer norm: dx of a row dropped": (LAYER, "group_norm_backward", output(lambda dx: with_zeros(dx, -1), 0)),
    "attention: no scale": (ATTENTION, "attention", inputs(lambda q, k, v, c: (q * np.float32(8**0.5), k, v, c))),
    "attention: the last key ignored": (ATTENTION, "attention", inputs(without_last_key)),
    "attention: lse minus its maximum": (ATTENTION, "attention", output(lambda lse: lse - lse.max(), 1)),
    "attention: dq without scale": (ATTENTION, "attention_backward", output(lambda dq: dq * np.float32(8**0.5), 0)),
    "attention: dk of a key dropped": (ATTENTION, "attention_backward", output(lambda g: with_zeros(g, 0, -1), 1)),
    "attention: dv of one head dropped": (ATTENTION, "attention_backward", output(lambda g: with_zeros(g, 0, 0, 1), 2)),
    "attention: no causal mask": (CAUSAL, "attention", inputs(lambda q, k, v, c: (q, k, v, False))),
    "attention: backward not causal": (CAUSAL, "attention_backward", inputs(lambda *args: (*args[:-1], False))),
    "gelu: by tanh": (GELU, "gelu", lambda op: lambda x: x / (1 + np.exp(-1.5957691 * (x + 0.044715 * x**3)))),
    "gelu: no derivative of Phi": (GELU, "gelu_backward", lambda op: lambda dy, x: dy * normal_cdf(x)),
    "geglu: the wrong half": (GEGLU, "geglu", lambda op: lambda x: op(np.roll(x, x.shape[-1] // 2, -1))),
    "geglu: y of the backward pass not stored": (GEGLU, "geglu_backward", inputs(lambda dy, x, y=None: (dy, x))),
    "geglu: gradients exchanged": (GEGLU, "geglu_backward", output(lambda dx: np.roll(dx, dx.shape[-1] // 2, -1))),
    "silu: relative error of 1e-6": (SILU, "silu", output(lambda y: y * np.float32(1 + 1e-6))),
    "silu: no derivative of the sigmoid": (SILU, "silu_backward", lambda op: lambda dy, x: dy / (1 + np.exp(-x))),
    "add: b ignored": (ADD, "add", lambda op: lambda a, b: a.copy()),
    "add: works in place": (ADD, "add", in_place),
    "add: in float64": (ADD, "add", output(lambda y: y.astype("f8"))),
    "add: not contiguous": (ADD, "add", output(lambda y: np.asfortranarray(y))),
    "sum_to: the last row skipped": (sum_to((8,), (999, 8)), "sum_to", inputs(lambda dy, shape: (dy[:-1], shape))),
    "embedding: the next row": (EMBEDDING, "embedding", inputs(lambda table, index: (table, index - 1))),
    "embedding: gradients overwritten": (EMBEDDING, "embedding_backward", overwritten),
    "upsample: shifted": (UPSAMPLE, "upsample_nearest", output(lambda y: np.roll(y, 1, 2))),
    "upsample: the mean of a block": (UPSAMPLE, "upsample_nearest_backward", output(lambda dx: dx / np.float32(4))),
    "concat: exchanged": (CONCAT, "concat", inputs(lambda a, b: (b, a))),
    "concat: gradients exchanged": (CONCAT, "concat_backward", output(lambda pair: pair[::-1])),
    "grad_norm: the last chunk skipped": (grad_norm(100_003), "grad_norm", inputs(lambda g: (g[:-3],))),
    "adamw: no bias correction": (ADAMW, "adamw", adamw_with(step=10**6)),
    "adamw: step - 1": (ADAMW, "adamw", adamw_with(step=2)),
    "adamw: no clipping": (CLIPPED, "adamw", adamw_with(clip=np.inf)),
    "adamw: decay in the gradient": (ADAMW, "adamw", inputs(decay_in_the_gradient)),
    "adamw: another eps": (adamw(100, eps=1e-4), "adamw", adamw_with(eps=2e-4)),
    "adamw: no moving average": (ADAMW, "adamw", adamw_with(ema_decay=1.0)),
    "muon: another momentum": (MUON, "muon", muon_with(momentum=0.95)),
    "muon: no clipping": (muon((6, 20), clip=0.1), "muon", muon_with(clip=np.inf)),
    "muon: no weight decay": (MUON, "muon", muon_with(weight_decay=0.0)),
    "muon: no moving average": (MUON, "muon", muon_with(ema_decay=1.0)),
    "muon: a matrix skipped": (MUON, "muon", with_matrices(lambda matrices: matrices[:-1])),
    "muon: rows and columns exchanged": (MUON, "muon", with_matrices(lambda matrices: matrices[:, [0, 2, 1]])),
    "muon: from the next weight on": (MUON, "muon", with_matrices(lambda matrices: matrices + [1, 0, 0])),
    "muon: the gradient scaled in place": (MUON, "muon", inputs(lambda p, g, *rest: (p, scaled_in_place(g), *rest))),
    "adamw: the gradient scaled in place": (ADAMW, "adamw", inputs(lambda p, g, *rest: (p, scaled_in_place(g), *rest))),
}  # fmt: skip


def broken(backend, op, mutate):
    """The backend with another kernel of one operation."""
    return replace(backend, kernels={**backend.kernels, op: mutate(backend.kernels[op])})


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_rejected(backend, mistake):
    case, op, mutate = MISTAKES[mistake]
    check(backend, case)
    with pytest.raises(AssertionError, match=re.escape(case.label)):
        check(broken(backend, op, mutate), case)


LOST_NAN = {
    "conv": (CONV, "conv2d", inputs(lambda x, *rest: (np.nan_to_num(x), *rest))),
    "norm": (NORM, "group_norm", output(np.nan_to_num, 0)),
    "attention": (ATTENTION, "attention", output(np.nan_to_num, 0)),
    "attention, backward": (ATTENTION, "attention_backward", output(np.nan_to_num, 2)),
    "adamw": (ADAMW, "adamw", inputs(lambda p, g, *rest: (p, np.nan_to_num(g), *rest))),
    "muon": (MUON, "muon", inputs(lambda p, g, *rest: (p, np.nan_to_num(g), *rest))),
    "conv, spread over the batch": (CONV, "conv2d", output(lambda y: y + 0 * y.sum())),
}


@pytest.mark.parametrize("mistake", LOST_NAN)
def test_a_lost_nan_is_rejected(backend, mistake):
    case, op, mutate = LOST_NAN[mistake]
    check_nan(backend, case)
    with pytest.raises(AssertionError, match="a NaN in"):
        check_nan(broken(backend, op, mutate), case)
