"""AdamW over many steps against torch's, its flat buffers, the EMA, and the learning-rate schedule."""

import math

import numpy as np
import pytest
import torch
from against_torch import draw, rms

from minidiff.engine import functional as F
from minidiff.engine.backend import get_backend
from minidiff.engine.nn import Parameter
from minidiff.engine.optim import AdamW, ema_decay, half_life, half_life_of, learning_rate
from minidiff.engine.tensor import Tensor

SHAPES = [(7, 5), (5,), (1, 3, 3, 2), ()]
STEPS = 20


def parameters(backend):
    return [Parameter(draw(*shape, seed=i), backend) for i, shape in enumerate(SHAPES)]


def gradient(step, i):
    """Away from zero: near zero the sign of rounding errors would decide an Adam step."""
    return (1 + step % 3) * draw(*SHAPES[i], offset=1.0, scale=0.3, seed=100 * step + i)


def torch_run(dtype, clip, **settings):
    leaves = [torch.tensor(draw(*shape, seed=i), dtype=dtype, requires_grad=True) for i, shape in enumerate(SHAPES)]
    optimizer = torch.optim.AdamW(leaves, **settings)
    norms = []
    for step in range(STEPS):
        for i, leaf in enumerate(leaves):
            leaf.grad = torch.tensor(gradient(step, i), dtype=dtype)
        norms.append(float(torch.nn.utils.clip_grad_norm_(leaves, clip)))
        optimizer.step()
    return [leaf.detach().numpy() for leaf in leaves], norms


@pytest.mark.parametrize("clip", [None, 1.0, 10.0])
@pytest.mark.parametrize("settings", [{"weight_decay": 0.01}, {"betas": (0.5, 0.9), "eps": 1e-4, "weight_decay": 0.3}])
def test_20_steps_equal_torch(backend, clip, settings):
    """Error against float64 at most twice that of torch's float32, or 3e-7 relative."""
    params = parameters(backend)
    optimizer = AdamW(params, lr=0.02, clip=clip, **settings)
    norms = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for i, p in enumerate(params):
            p.grad += backend.asarray(gradient(step, i))
        norms.append(float(optimizer.step()))
    bound = math.inf if clip is None else clip
    want, want_norms = torch_run(torch.float64, bound, lr=0.02, **settings)
    theirs, _ = torch_run(torch.float32, bound, lr=0.02, **settings)
    for p, a, b in zip(params, want, theirs, strict=True):
        assert rms(p.numpy() - a) <= max(2 * rms(b - a), 3e-7 * rms(a))
    np.testing.assert_allclose(norms, want_norms, rtol=1e-6)
    assert optimizer.step_count == STEPS


def test_parameters_and_gradients_are_views_of_flat_buffers(backend):
    params = parameters(backend)
    values = [p.numpy().copy() for p in params]
    optimizer = AdamW(params, lr=0.1)
    assert (
        optimizer.p.shape == optimizer.g.shape == optimizer.m.shape == optimizer.v.shape == (sum(map(np.size, values)),)
    )
    for p, value in zip(params, values, strict=True):
        assert p.data.base is not None and backend.xp.shares_memory(p.data, optimizer.p)
        assert backend.xp.shares_memory(p.grad, optimizer.g)
        np.testing.assert_array_equal(p.numpy(), value)
    first, second = params[0], params[1]
    y = F.linear(Tensor(draw(3, 5), backend), first)
    F.mul(F.add(y, F.reshape(y, (3, 7))), y).backward(np.ones((3, 7)))
    assert np.shares_memory(first.grad, optimizer.g) and optimizer.g[:35].any() and not optimizer.g[35:].any()
    optimizer.g[35:40] = 2
    assert backend.to_numpy(second.grad).tolist() == [2] * 5
    optimizer.zero_grad()
    assert not backend.to_numpy(first.grad).any()


def test_split_returns_the_parameters_shapes_in_order(backend):
    optimizer = AdamW(parameters(backend), lr=0.1)
    parts = optimizer.split(backend.asarray(np.arange(len(optimizer.p))))
    assert [part.shape for part in parts] == SHAPES
    assert np.concatenate([backend.to_numpy(part).ravel() for part in parts]).tolist() == list(range(len(optimizer.p)))


def test_the_ema_warms_up(backend):
    params = parameters(backend)
    optimizer = AdamW(params, lr=0.05, ema=0.6)
    ema = backend.to_numpy(optimizer.p).astype(np.float64)
    for step in range(1, STEPS + 1):
        optimizer.g[...] = backend.asarray(draw(len(ema), seed=step))
        optimizer.step()
        decay = min(0.6, (1 + step) / (10 + step))
        ema = decay * ema + (1 - decay) * backend.to_numpy(optimizer.p)
    assert ema_decay(0.6, 1) == 2 / 11 and ema_decay(0.6, 1000) == 0.6
    assert rms(backend.to_numpy(optimizer.ema) - ema) <= STEPS * 2**-24 * rms(ema)  # one rounding per step


def test_several_averages(backend):
    """Each is the loop's average; the first is bit for bit that of an optimiser with one, and so are the weights."""
    several, one = (AdamW(parameters(backend), lr=0.05, ema=ema) for ema in ([0.6, 0.3, 0.8], 0.6))
    emas = [backend.to_numpy(several.p).astype(np.float64)] * 3
    for step in range(1, STEPS + 1):
        for optimizer in (several, one):
            optimizer.g[...] = backend.asarray(draw(len(emas[0]), seed=step))
            optimizer.step()
        decays = [min(decay, (1 + step) / (10 + step)) for decay in (0.6, 0.3, 0.8)]
        emas = [d * ema + (1 - d) * backend.to_numpy(several.p) for d, ema in zip(decays, emas, strict=True)]
    for got, want in zip(several.emas, emas, strict=True):
        assert rms(backend.to_numpy(got) - want) <= STEPS * 2**-24 * rms(want)  # one rounding per step
    assert len({backend.to_numpy(ema).tobytes() for ema in several.emas}) == 3 and several.ema is several.emas[0]
    for a, b in ((several.ema, one.ema), (several.p, one.p)):
        np.testing.assert_array_equal(backend.to_numpy(a), backend.to_numpy(b))


def test_half_life():
    for steps in (1, 10, 138.5, 1e4):
        np.testing.assert_allclose(half_life(steps) ** steps, 0.5, rtol=1e-11)  # 1e4 roundings of 2^-53
        np.testing.assert_allclose(half_life_of(half_life(steps)), steps, rtol=1e-11)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_skipped(backend, value):
    """Weights, moments and EMA stay unchanged; the next finite gradient is applied and resets `skipped`."""
    optimizer = AdamW(parameters(backend), lr=0.05, ema=[0.9, 0.5])
    optimizer.g[...] = 1
    optimizer.step()
    before = [backend.to_numpy(a).copy() for a in (optimizer.p, optimizer.m, optimizer.v, *optimizer.emas)]
    for skipped in (1, 2):
        optimizer.g[3] = value
        assert not math.isfinite(optimizer.step())
        assert (optimizer.step_count, optimizer.skipped) == (1 + skipped, skipped)
        for a, b in zip((optimizer.p, optimizer.m, optimizer.v, *optimizer.emas), before, strict=True):
            np.testing.assert_array_equal(backend.to_numpy(a), b)
    optimizer.g[...] = 1
    assert math.isfinite(optimizer.step())
    assert (optimizer.step_count, optimizer.skipped) == (4, 0)
    assert np.all(backend.to_numpy(optimizer.p) != before[0])


def test_averaged_swaps_in_the_ema_within_its_block(backend):
    params = parameters(backend)
    optimizer = AdamW(params, lr=0.05, ema=0.9)
    optimizer.g[...] = 1
    optimizer.step()
    raw, ema = (backend.to_numpy(a).copy() for a in (optimizer.p, optimizer.ema))
    assert (raw != ema).any()
    with pytest.raises(KeyError), optimizer.averaged():
        assert (np.concatenate([p.numpy().ravel() for p in params]) == ema).all()
        raise KeyError
    assert (np.concatenate([p.numpy().ravel() for p in params]) == raw).all()


def test_bad_parameter_lists_are_refused():
    a, b = (Parameter(np.ones(2), get_backend(name)) for name in ("numpy", "numba"))
    for params in ([], [a, a], [a, b]):
        with pytest.raises(ValueError, match="at least one parameter, each once, all on one backend"):
            AdamW(params, lr=0.1)


def test_the_learning_rate_warms_up_stays_and_decays():
    rates = [learning_rate(2.0, step, 100, warmup=10, decay_from=0.5) for step in range(1, 101)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 5)  # linear up to lr
    assert rates[9:50] == [2.0] * 41
    assert all(a > b > 0 for a, b in zip(rates[49:], rates[50:], strict=False))
    np.testing.assert_allclose(rates[74], 1 + math.cos(math.pi * 25 / 51))  # half a cosine
    assert rates[-1] < 0.01 * 2
    assert [learning_rate(2.0, step, 5, warmup=0) for step in range(1, 6)] == [2.0] * 5
