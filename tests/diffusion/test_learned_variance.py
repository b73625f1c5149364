"""Learned variance and importance sampling of t: the loss and its gradient by torch, samplers, the exact model."""

import math

import exact_checks as checks
import numpy as np
import pytest
import torch

from minidiff.diffusion import reverse
from minidiff.diffusion.continuous import Flow
from minidiff.diffusion.loss import (
    HISTORY,
    importance_sample,
    loss_history,
    record_losses,
    training_loss,
)
from minidiff.diffusion.sampler import SAMPLERS, Sampler
from minidiff.diffusion.schedule import linear_schedule
from minidiff.diffusion.steps import learned_log_variance
from minidiff.engine.backend import get_backend
from minidiff.engine.gaussian import bound_terms
from minidiff.engine.losses import squared_errors, weighted_mean
from minidiff.engine.tensor import Tensor
from minidiff.errors import MinidiffError

T = 20
SCHEDULE = linear_schedule(T, 1e-3, 0.3)
SHAPE = (5, 3, 4, 2)
TIMES = np.array([0, 1, 7, 19, 0])
rng = np.random.default_rng(0)
X0 = (rng.integers(0, 256, SHAPE) / 127.5 - 1).astype(np.float32)
X0[0, 0, 0], X0[4, 0, 0] = -1, 1  # bytes with an unbounded interval
EPS = rng.standard_normal(SHAPE, dtype=np.float32)
# near eps, so that the bytes at t = 0 have a mass that float64 holds
PREDICTION = np.concatenate(
    [EPS + 0.1 * rng.standard_normal(SHAPE), rng.uniform(-1.5, 1.5, SHAPE)], -1, dtype=np.float32
)


def torch_losses(prediction, stop=True):
    """L_simple + L_vlb T / 1000 of each image, written as in the paper, in float64 by torch's distributions."""
    beta = torch.linspace(1e-3, 0.3, T, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - beta, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    beta_tilde = (1 - before) / (1 - alpha_bar) * beta
    clipped = torch.cat([beta_tilde[1:2], beta_tilde[1:]])
    x0, eps = torch.tensor(X0, dtype=torch.float64), torch.tensor(EPS, dtype=torch.float64)
    losses = []
    for n, t in enumerate(TIMES):
        x_t = alpha_bar[t].sqrt() * x0[n] + (1 - alpha_bar[t]).sqrt() * eps[n]
        eps_hat, v = prediction[n].split(SHAPE[-1], -1)
        simple = ((eps_hat - eps[n]) ** 2).mean()

        def mean_of(x0_hat, t=t, x_t=x_t):
            noisy = (1 - beta[t]).sqrt() * (1 - before[t]) * x_t
            return (before[t].sqrt() * beta[t] * x0_hat + noisy) / (1 - alpha_bar[t])

        constant = eps_hat.detach() if stop else eps_hat
        mean = mean_of((x_t - (1 - alpha_bar[t]).sqrt() * constant) / alpha_bar[t].sqrt())
        log_variance = (v + 1) / 2 * beta[t].log() + (1 - v) / 2 * clipped[t].log()
        p = torch.distributions.Normal(mean, (log_variance / 2).exp())
        if t == 0:
            upper, lower = p.cdf(x0[n] + 1 / 255), p.cdf(x0[n] - 1 / 255)
            upper, lower = torch.where(x0[n] > 0.999, 1.0, upper), torch.where(x0[n] < -0.999, 0.0, lower)
            term = -(upper - lower).log()
        else:
            q = torch.distributions.Normal(mean_of(x0[n]), beta_tilde[t].sqrt())
            term = torch.distributions.kl_divergence(q, p)
        losses.append(simple + term.mean() / math.log(2) * T / 1000)
    return torch.stack(losses)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("weight", [None, np.array([0.5, 2.0, 1.0, 0.1, 3.0])])
def test_the_hybrid_loss_and_its_gradient_by_torch(backend, weight):
    prediction = Tensor(PREDICTION, get_backend(backend), requires_grad=True)
    loss = training_loss(lambda x_t, t: prediction, SCHEDULE, X0, TIMES, EPS, weight=weight)
    loss.backward()

    twin = torch.tensor(PREDICTION, dtype=torch.float64, requires_grad=True)
    expected = (torch_losses(twin) * torch.tensor(np.ones(5) if weight is None else weight)).mean()
    expected.backward()
    # float32: some twenty roundings of 6e-8; the derivative by v is a difference of terms near 1
    np.testing.assert_allclose(loss.numpy(), expected.item(), rtol=1e-6)
    for half in (slice(2), slice(2, 4)):
        grad = twin.grad.numpy()[..., half]
        np.testing.assert_allclose(prediction.grad[..., half], grad, rtol=0, atol=2e-6 * np.abs(grad).max())
    each = checks.image_losses(lambda x_t, t: Tensor(PREDICTION, get_backend(backend)), SCHEDULE, X0, TIMES, EPS)
    np.testing.assert_allclose(each, torch_losses(twin).detach(), rtol=1e-6)


def test_the_mean_has_no_gradient_of_the_bound():
    """The first half of the channels has the gradient of the squared error alone; without the stop it would differ."""
    prediction = Tensor(PREDICTION, get_backend("numpy"), requires_grad=True)
    training_loss(lambda x_t, t: prediction, SCHEDULE, X0, TIMES, EPS).backward()
    simple = 2 * (PREDICTION[..., :2] - EPS) / EPS.size
    np.testing.assert_allclose(prediction.grad[..., :2], simple, rtol=1e-5, atol=1e-9)
    twin = torch.tensor(PREDICTION, dtype=torch.float64, requires_grad=True)
    torch_losses(twin, stop=False).mean().backward()
    assert np.abs(twin.grad.numpy()[..., :2] - simple).max() > 0.1 * np.abs(simple).max()


def test_the_loss_of_each_image_without_a_learned_variance():
    prediction = PREDICTION[..., :2].copy()
    model = lambda x_t, t: Tensor(prediction, get_backend("numpy"))  # noqa: E731
    each = checks.image_losses(model, SCHEDULE, X0, TIMES, EPS)
    np.testing.assert_allclose(each, np.mean((prediction - EPS) ** 2, (1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(each.mean(), training_loss(model, SCHEDULE, X0, TIMES, EPS).numpy(), rtol=1e-6)


def test_the_variance_lies_between_both_fixed_ones():
    v, t = np.array([-1.0, 1.0, 0.0]).reshape(3, 1, 1, 1), np.array([4, 4, 4])
    low, high, middle = np.exp(learned_log_variance(SCHEDULE, v, t)).ravel()
    assert low == pytest.approx(SCHEDULE.posterior_variance[4], rel=1e-12)
    assert high == pytest.approx(SCHEDULE.betas[4], rel=1e-12)
    assert middle == pytest.approx(math.sqrt(low * high), rel=1e-12)


def test_the_bound_with_the_optimal_variance():
    checks.check_learned_variance()


def test_the_optimal_variance_has_the_least_loss():
    checks.check_learned_loss()


def two_halves(x_t, t):
    return np.concatenate([0.5 * x_t, np.sin(x_t)], -1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_other_variances_and_samplers_ignore_the_second_half(name):
    ends = []
    for model in (two_halves, lambda x_t, t: 0.5 * x_t):
        x_t = reverse.sample(model, SCHEDULE, SHAPE, np.random.default_rng(0), 10, name)
        ends.append(reverse.last_x_t(x_t))
    np.testing.assert_array_equal(*ends)


def test_a_model_without_a_variance_is_refused():
    sampler = Sampler("ddpm", variance="learned_range")
    with pytest.raises(MinidiffError, match="without a variance: use a variance other than learned_range"):
        next(reverse.sample(lambda x_t, t: x_t, SCHEDULE, SHAPE, np.random.default_rng(0), 10, sampler))


def test_continuous_time_is_refused():
    model = lambda x_t, t: Tensor(PREDICTION, get_backend("numpy"))  # noqa: E731
    with pytest.raises(MinidiffError, match="a learned variance is not defined for flow"):
        training_loss(model, Flow(), X0, TIMES / T, EPS)
    with pytest.raises(MinidiffError, match="importance sampling of t needs whole timesteps, which flow lacks"):
        loss_history(Flow())


# Importance sampling


def test_the_distribution_of_t_and_the_weights():
    checks.check_importance_sampling()


def test_t_is_uniform_until_every_t_has_its_losses():
    history = loss_history(SCHEDULE)
    for _ in range(HISTORY):
        record_losses(history, np.arange(1, T), np.full(T - 1, 100.0))
    record_losses(history, np.zeros(HISTORY - 1, int), np.ones(HISTORY - 1))
    t, weight = importance_sample(history, np.random.default_rng(5), 1000)
    np.testing.assert_array_equal(t, SCHEDULE.sample_t(np.random.default_rng(5), 1000))
    np.testing.assert_array_equal(weight, 1)
    record_losses(history, np.array([0]), np.array([1.0]))
    assert (importance_sample(history, np.random.default_rng(5), 1000)[1] != 1).all()


def test_the_history_keeps_the_newest_finite_losses():
    history = loss_history(SCHEDULE)
    record_losses(history, np.array([3] * 13), np.array([*range(11), math.nan, math.inf]))
    np.testing.assert_array_equal(history[3], range(1, 11))
    assert np.isnan(history[2]).all()


def test_arrays_that_do_not_fit_are_refused():
    backend = get_backend("numpy")
    a, b = Tensor(np.zeros((2, 3)), backend), np.zeros((2, 4))
    with pytest.raises(ValueError, match="squared_errors: prediction"):
        squared_errors(a, b)
    with pytest.raises(ValueError, match="weighted_mean: weight"):
        weighted_mean(Tensor(np.zeros(2), backend), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="bound_terms: shapes"):
        bound_terms(a, b, b, b, b, np.zeros(2, bool))
