"""The solutions of chapter 6 against the reference kernels and against the optimiser, in float64."""

import numpy as np
import pytest
from minidiff_kernels.reference import attention, conv, norm

import minidiff as md
from minidiff.engine.nn import Parameter
from minidiff.learn.chapters import autograd

CONV, NORM, ATTENTION, ADAMW = autograd.EXERCISES
# float64 and sums of at most some hundred terms of size 1: rounding is below 1e-13 of the largest value
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def inputs(exercise):
    return [args for seed in range(3) for args in exercise.inputs(np.random.default_rng(seed))]


def assert_close(ours, reference):
    assert len(ours) == len(reference)
    for a, b in zip(ours, reference, strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)


@pytest.mark.parametrize("args", inputs(CONV))
def test_convolution_backward_is_the_kernel_s(args):
    dy, x, w, stride, pad = args
    assert_close(CONV.solution(*args), conv.conv2d_backward(dy, x, w, stride, (pad,) * 4))


@pytest.mark.parametrize("args", inputs(NORM))
def test_group_norm_backward_is_the_kernel_s(args):
    dy, x, weight, groups = args
    bias = np.zeros_like(weight)
    _, mean, rstd = norm.group_norm(x, weight, bias, groups, autograd.EPS)
    assert_close(NORM.solution(*args), norm.group_norm_backward(dy, x, weight, bias, mean, rstd))


@pytest.mark.parametrize("args", inputs(ATTENTION))
def test_attention_backward_is_the_kernel_s(args):
    do, q, k, v = (a[None, :, None] for a in args)  # one image, one head
    o, lse = attention.attention(q, k, v)
    assert_close(
        [a[None, :, None] for a in ATTENTION.solution(*args)], attention.attention_backward(do, q, k, v, o, lse)
    )


def test_adamw_step_is_the_optimiser_s():
    """Ten steps with random gradients, from zero moments."""
    rng = np.random.default_rng(0)
    p, lr, betas, decay = rng.standard_normal(20), 0.02, (0.9, 0.99), 0.1
    m, v = np.zeros(20), np.zeros(20)
    parameter = Parameter(p.copy())
    optimizer = md.AdamW([parameter], lr, betas, weight_decay=decay, clip=None)
    for step in range(1, 11):
        g = rng.standard_normal(20)
        optimizer.g[...] = g
        optimizer.step()
        p, m, v = ADAMW.solution(p, g, m, v, step, lr, betas, decay)
        assert_close((p, m, v), (parameter.numpy(), optimizer.m, optimizer.v))


def test_adamw_step_leaves_its_arguments_alone():
    args = ADAMW.inputs(np.random.default_rng(0))[1]
    before = [np.copy(a) for a in args[:4]]
    ADAMW.solution(*args)
    assert_close(args[:4], before)
