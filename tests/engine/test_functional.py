"""Every differentiable operation against torch: output and all gradients, through the tape."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as T
from against_torch import CONV_FLOOR, FLOOR, check, differentiable, draw, nchw, nhwc

from minidiff.engine import functional as F
from minidiff.engine import losses, normalisation
from minidiff.engine.fused.geglu_linear import geglu_linear
from minidiff.engine.fused.norm_conv import norm_conv
from minidiff.engine.fused.upsample_conv import upsample_conv
from minidiff.engine.gaussian import kl_divergence, reparameterised_sample
from minidiff.engine.losses import cross_entropy, mse, squared_errors, weighted_mean
from minidiff.engine.nn import Conv2d, GroupNorm, Parameter
from minidiff.engine.normalisation import group_norm
from minidiff.engine.pooling import avg_pool, global_avg_pool
from minidiff.engine.tensor import Tensor

SAME, DOWN = (1, 1, 1, 1), (0, 1, 0, 1)
TARGET, WEIGHT, INDEX = draw(2, 6, 5, 3, seed=7), draw(2, 1, 1, 1, seed=8) ** 2, np.array([4, 0, 4, 2])
WEIGHTS = WEIGHT.ravel()


def conv(x, w, bias=None, add=0, stride=1, pad=(0, 0, 0, 0)):
    top, bottom, left, right = pad
    return nhwc(T.conv2d(T.pad(nchw(x), (left, right, top, bottom)), nchw(w), bias, stride)) + add


def linear(x, w, bias=None, add=0):
    return T.linear(x, w, bias) + add


def norm(x, weight, bias, groups, silu=False):
    z = nhwc(T.group_norm(nchw(x), groups, weight, bias, 1e-5))
    return T.silu(z) if silu else z


def norm_then_conv(x, gain, shift, w, bias, add):
    norm, conv = GroupNorm(3, 6, 1e-5), Conv2d(6, 8, 3, None, pad=1)
    norm.weight, norm.bias, conv.weight, conv.bias = gain, shift, w, bias
    return norm_conv(norm, conv, x, add)


def convolved_norm(x, gain, shift, w, bias, add):
    return conv(norm(x, gain, shift, 3, True), w, bias, add, pad=SAME)


def upsample_then_conv(x, w, bias, size=None):
    conv = Conv2d(3, 8, 3, None, pad=1)
    conv.weight, conv.bias = w, bias
    return upsample_conv(conv, x, size)


def convolved_upsample(x, w, bias, size=(12, 10)):
    return conv(upsample(x)[:, : size[0], : size[1]], w, bias, pad=SAME)


def attention(q, k, v, causal=False):
    by_head = (a.transpose(1, 2) for a in (q, k, v))
    return T.scaled_dot_product_attention(*by_head, is_causal=causal).transpose(1, 2)


def upsample(x):
    return nhwc(T.interpolate(nchw(x), scale_factor=2))


def layer_norm(x, weight, bias):
    return T.layer_norm(x, weight.shape, weight, bias)


def squared_error(prediction, weight=None):
    error = (prediction - torch.tensor(TARGET)) ** 2
    return (error if weight is None else error * torch.tensor(weight)).mean()


def squared_errors_of(prediction):
    return ((prediction - torch.tensor(TARGET)) ** 2).mean((1, 2, 3))


def cross_entropy_of(logits):
    return T.cross_entropy(logits, torch.tensor(INDEX))


def gaussian_sample(mean, log_variance):
    return mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * torch.tensor(EPS)


def kl(mean, log_variance):
    log_variance = log_variance.clamp(-30, 20)
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()


def weighted_halves(x):
    """2 first + second: different weights, so that exchanged halves are noticed."""
    first, second = F.split(x)
    return F.add(F.affine(first, 2), second)


X, W, BIAS, TEMB, RESIDUAL = draw(2, 6, 5, 3), draw(8, 3, 3, 3), draw(8), draw(2, 1, 1, 8), draw(2, 6, 5, 8)
ROWS, LINEAR, ROWS_OUT = draw(2, 4, 3), draw(8, 3), draw(2, 4, 8)
Z, GAIN, SHIFT = draw(2, 4, 5, 6), draw(6, offset=1), draw(6, seed=1)
Q, K, V = draw(2, 9, 2, 8), draw(2, 7, 2, 8), draw(2, 7, 2, 8, seed=1)
groups3, groups2 = partial(group_norm, groups=3, eps=1e-5), partial(group_norm, groups=2, eps=1e-5, silu=True)

LOG_VARIANCE, BEYOND, EPS = draw(2, 4, 3, seed=2), draw(2, 4, 3, scale=30, offset=-10), draw(2, 4, 3, seed=3)

# Label, our function, torch's function, inputs by name.
LINES = [
    ("add", F.add, lambda a, b: a + b, {"a": ROWS, "b": draw(2, 4, 3, seed=1)}),
    ("add, broadcast", F.add, lambda a, b: a + b, {"a": ROWS, "b": draw(4, 1)}),
    ("add, broadcast both", F.add, lambda a, b: a + b, {"a": draw(2, 1, 4), "b": draw(5, 1)}),
    ("mul", F.mul, lambda a, b: a * b, {"a": ROWS, "b": draw(2, 4, 3, seed=1)}),
    ("mul, broadcast", F.mul, lambda a, b: a * b, {"a": ROWS, "b": draw(3)}),
    ("affine", partial(F.affine, scale=3, offset=-0.5), lambda x: 3 * x - 0.5, {"x": ROWS}),
    ("silu", F.silu, lambda x: T.silu(x), {"x": X}),
    ("conv2d", F.conv2d, conv, {"x": X, "w": W}),
    ("conv2d, bias", F.conv2d, conv, {"x": X, "w": W, "bias": BIAS}),
    ("conv2d, temb", partial(F.conv2d, pad=SAME), partial(conv, pad=SAME), {"x": X, "w": W, "bias": BIAS, "add": TEMB}),
    ("conv2d, residual", partial(F.conv2d, pad=SAME), partial(conv, pad=SAME), {"x": X, "w": W, "add": RESIDUAL}),
    ("conv2d, stride 2", partial(F.conv2d, stride=2, pad=DOWN), partial(conv, stride=2, pad=DOWN), {"x": X, "w": W}),
    ("linear", F.linear, linear, {"x": ROWS, "w": LINEAR}),
    ("linear, one row", F.linear, linear, {"x": draw(3), "w": LINEAR, "bias": BIAS}),
    ("linear, residual", F.linear, linear, {"x": ROWS, "w": LINEAR, "bias": BIAS, "add": ROWS_OUT}),
    ("group_norm", groups3, partial(norm, groups=3), {"x": Z, "weight": GAIN, "bias": SHIFT}),
    ("group_norm, silu", groups2, partial(norm, groups=2, silu=True), {"x": Z, "weight": GAIN, "bias": SHIFT}),
    ("norm_conv", norm_then_conv, convolved_norm,
     {"x": Z, "gain": GAIN, "shift": SHIFT, "w": draw(8, 3, 3, 6), "bias": BIAS, "add": draw(2, 4, 5, 8)}),
    ("layer_norm", partial(normalisation.layer_norm, eps=1e-5), layer_norm, {"x": Z, "weight": GAIN, "bias": SHIFT}),
    ("attention", F.attention, attention, {"q": Q, "k": K, "v": V}),
    ("attention, causal", partial(F.attention, causal=True), partial(attention, causal=True), {"q": Q, "k": Q, "v": Q}),
    ("geglu_linear", geglu_linear, lambda x, w, bias, add: T.linear(x[..., :4] * T.gelu(x[..., 4:]), w, bias) + add,
     {"x": RESIDUAL, "w": draw(8, 4), "bias": draw(8, seed=1), "add": draw(*RESIDUAL.shape, seed=2)}),
    ("gelu", F.gelu, lambda x: T.gelu(x), {"x": X}),
    ("upsample_nearest", F.upsample_nearest, upsample, {"x": X}),
    ("upsample_nearest, cropped", partial(F.upsample_nearest, size=(11, 10)), lambda x: upsample(x)[:, :11], {"x": X}),
    ("upsample_conv", upsample_then_conv, convolved_upsample, {"x": X, "w": W, "bias": BIAS}),
    ("upsample_conv, cropped", partial(upsample_then_conv, size=(11, 9)), partial(convolved_upsample, size=(11, 9)),
     {"x": X, "w": W, "bias": BIAS}),
    ("avg_pool", avg_pool, lambda x: nhwc(T.avg_pool2d(nchw(x), 2)), {"x": draw(2, 6, 4, 3)}),
    ("mean_pixel", global_avg_pool, lambda x: x.mean((1, 2)), {"x": X}),
    ("split", weighted_halves, lambda x: 2 * x[..., :4] + x[..., 4:], {"x": RESIDUAL}),
    ("concat", F.concat, lambda a, b: torch.cat((a, b), -1), {"a": X, "b": draw(2, 6, 5, 4)}),
    ("embedding", partial(F.embedding, index=INDEX), lambda table: table[torch.tensor(INDEX)], {"table": draw(5, 8)}),
    ("squared_errors", partial(squared_errors, target=TARGET), squared_errors_of, {"prediction": X}),
    ("weighted_mean", partial(weighted_mean, weight=WEIGHTS), lambda x: (x * torch.tensor(WEIGHTS)).mean(),
     {"x": X[:, 0, 0, 0]}),
    ("mse", partial(mse, target=TARGET), squared_error, {"prediction": X}),
    ("mse, weighted", partial(mse, target=TARGET, weight=WEIGHT), partial(squared_error, weight=WEIGHT),
     {"prediction": X}),
    ("sample", partial(reparameterised_sample, eps=EPS), gaussian_sample, {"mean": ROWS, "log_variance": LOG_VARIANCE}),
    ("sample, clipped", partial(reparameterised_sample, eps=EPS), gaussian_sample,
     {"mean": ROWS, "log_variance": BEYOND}),
    ("divergence", kl_divergence, kl, {"mean": ROWS, "log_variance": LOG_VARIANCE}),
    ("divergence, clipped", kl_divergence, kl, {"mean": ROWS, "log_variance": BEYOND}),
    ("cross_entropy", partial(cross_entropy, labels=INDEX), cross_entropy_of, {"logits": draw(4, 5, scale=20)}),
]  # fmt: skip
CASES = [
    differentiable(label, ours, theirs, CONV_FLOOR if "conv" in label or "linear" in label else FLOOR, **inputs)
    for label, ours, theirs, inputs in LINES
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_function_equals_torch(backend, case):
    check(backend, case)


def test_every_function_has_a_case():
    """Except reshape and dropout, which have their own tests below, and what checks shapes alone."""
    public = {
        name
        for module in (F, losses, normalisation)
        for name, f in vars(module).items()
        if getattr(f, "__module__", "") == module.__name__ and name[0].islower()
    }
    assert public - {str(case).partition(",")[0] for case in CASES} == {
        "reshape", "dropout", "check_conv2d", "check_linear",
    }  # fmt: skip


def test_embedding_widens_the_rows_alone(backend):
    table = draw(5, 8).astype(np.float16)
    widened = []
    recording = replace(backend, kernels=backend.kernels | {"widen": lambda a: widened.append(a.shape) or widen(a)})
    widen = backend.widen
    y = F.embedding(Parameter(backend.xp.asarray(table), recording), INDEX)
    np.testing.assert_array_equal(y.numpy(), table[INDEX].astype(np.float32))
    assert widened == [(len(INDEX), 8)]


def test_reshape(backend):
    x = Tensor(draw(2, 3, 4), backend, requires_grad=True)
    y = F.reshape(x, (4, -1))
    assert y.shape == (4, 6)
    y.backward(dy := draw(4, 6))
    np.testing.assert_array_equal(y.numpy(), draw(2, 3, 4).reshape(4, 6))
    np.testing.assert_array_equal(backend.to_numpy(x.grad), dy.reshape(2, 3, 4))


def test_dropout_without_rng_is_the_identity(backend):
    x = Tensor(draw(5), backend)
    assert F.dropout(x, 0.5) is x
    assert F.dropout(x, 0.0, np.random.default_rng(0)) is x


def test_dropout_keeps_the_expectation(backend):
    """Each of n ones becomes 1 / q with probability q, else 0; 5 standard errors, sqrt((1 - q) / (q n)) each."""
    n, p = 100_000, 0.3
    x = Tensor(np.ones(n), backend, requires_grad=True)
    y = F.dropout(x, p, np.random.default_rng(0))
    y.backward(np.ones(n))
    values = y.numpy()
    assert set(values.tolist()) == {0, np.float32(1 / 0.7)}
    assert abs(values.mean() - 1) < 5 * np.sqrt(p / (1 - p) / n)
    np.testing.assert_array_equal(backend.to_numpy(x.grad), values)


def test_dropout_depends_on_the_rng_only(backend):
    x = Tensor(np.ones((3, 50)), backend)
    a, b, c = (F.dropout(x, 0.5, np.random.default_rng(seed)).numpy() for seed in (1, 1, 2))
    assert (a == b).all() and (a != c).any()


WRONG = {
    "conv2d: the input has 4 channels": lambda t: F.conv2d(t(1, 5, 5, 4), t(8, 3, 3, 3)),
    "conv2d: the 3x3 kernel is larger": lambda t: F.conv2d(t(1, 2, 5, 3), t(8, 3, 3, 3)),
    "conv2d: the bias has shape": lambda t: F.conv2d(t(1, 5, 5, 3), t(8, 3, 3, 3), t(1)),
    "conv2d: cannot add": lambda t: F.conv2d(t(2, 5, 5, 3), t(8, 3, 3, 3), add=t(1, 3, 3, 8)),
    "group_norm: 6 channels": lambda t: group_norm(t(2, 3, 6), t(6), t(6), 4, 1e-5),
    "group_norm: weight": lambda t: group_norm(t(2, 3, 6), t(1), t(6), 3, 1e-5),
    "layer_norm: weight": lambda t: normalisation.layer_norm(t(2, 3, 6), t(1), t(6), 1e-5),
    "norm_conv: the input has 5 channels": lambda t: norm_then_conv(
        t(2, 4, 4, 5), t(6), t(6), t(8, 3, 3, 5), t(8), None
    ),
    "upsample_conv: the input has 5 channels": lambda t: upsample_then_conv(t(2, 4, 4, 5), t(8, 3, 3, 3), t(8)),
    "attention: q": lambda t: F.attention(t(2, 5, 2, 3), t(2, 4, 2, 3), t(2, 5, 2, 3)),
    "attention: q .*": lambda t: F.attention(t(2, 5, 2, 3), t(1, 4, 2, 3), t(1, 4, 2, 3)),
    "mse: prediction": lambda t: mse(t(2, 3), draw(1, 3)),
    "mse: weight": lambda t: mse(t(2, 3), draw(2, 3), draw(4, 2, 1)),
    "reparameterised_sample: shapes": lambda t: reparameterised_sample(t(2, 3), t(2, 3), draw(1, 3)),
    "kl_divergence: shapes": lambda t: kl_divergence(t(2, 3), t(2, 1)),
    "cross_entropy: logits": lambda t: cross_entropy(t(2, 3), np.array([0])),
    "cross_entropy: logits .* float": lambda t: cross_entropy(t(2, 3), np.zeros(2)),
    "linear: the input has 3 channels": lambda t: F.linear(t(2, 3), t(5, 4)),
    "linear: the bias": lambda t: F.linear(t(2, 3), t(5, 3), t(1)),
    "linear: cannot add": lambda t: F.linear(t(2, 3), t(5, 3), add=t(1, 5)),
}


@pytest.mark.parametrize("message", WRONG)
def test_shapes_that_do_not_match_are_refused(backend, message):
    with pytest.raises(ValueError, match=message):
        WRONG[message](lambda *shape: Tensor(draw(*shape), backend))


@pytest.mark.parametrize(
    "index, error", [([0, 5], IndexError), ([-1], IndexError), ([0.0], TypeError), ([[1]], TypeError)]
)
def test_a_bad_index_is_refused(backend, index, error):
    with pytest.raises(error, match="embedding"):
        F.embedding(Tensor(draw(5, 2), backend), np.array(index))


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_a_label_out_of_range_is_refused(backend, labels):
    with pytest.raises(IndexError, match="cross_entropy"):
        cross_entropy(Tensor(draw(2, 3), backend), np.array(labels))


def test_cross_entropy_of_large_logits_does_not_overflow(backend):
    logits = Tensor(np.float32([[1000, -1000], [-1000, 1000]]), backend, requires_grad=True)
    loss = cross_entropy(logits, np.array([0, 0]))
    loss.backward()
    assert float(loss.numpy()) == 1000
    np.testing.assert_array_equal(backend.to_numpy(logits.grad), [[0, 0], [-0.5, 0.5]])
