"""Gaussian mixtures against torch's, against integrals, and against differences of their own density."""

import math

import numpy as np
import pytest
import torch
from small_runs import refused

import minidiff as md
from minidiff.diffusion.forward import x0_and_eps
from minidiff.diffusion.sde import continuous_time

RNG = np.random.default_rng(0)
MEANS, WEIGHTS = RNG.standard_normal((3, 2)), np.array([1, 2, 3])
ROOTS = 0.4 * RNG.standard_normal((3, 2, 2))
COVARIANCES = ROOTS @ ROOTS.swapaxes(1, 2)
MIXTURES = {
    "isotropic": md.GaussianMixture(MEANS, 0.3, WEIGHTS),
    "one std each": md.GaussianMixture(MEANS, np.array([[0.1], [0.2], [0.4]]), WEIGHTS),
    "diagonal": md.GaussianMixture(MEANS, RNG.uniform(0.1, 0.5, (3, 2)), WEIGHTS),
    "covariances": md.GaussianMixture(MEANS, weights=WEIGHTS, covariances=COVARIANCES),
    "finite set": md.GaussianMixture(MEANS, weights=WEIGHTS),
}
by_mixture = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
X_T = RNG.standard_normal((5, 1, 1, 2))
ALPHA_BAR = np.array([0.999, 0.9, 0.5, 0.1, 1e-6])


def covariances_of(mixture):
    if mixture.covariances is not None:
        return mixture.covariances
    return np.stack([np.diag(std**2) for std in np.broadcast_to(mixture.std, (3, 2))])


def torch_density(mixture, alpha_bar):
    """The distribution of x_t by torch."""
    covariance = alpha_bar * covariances_of(mixture) + (1 - alpha_bar) * np.eye(2)
    components = torch.distributions.MultivariateNormal(
        torch.tensor(np.sqrt(alpha_bar) * mixture.means), torch.tensor(covariance)
    )
    weights = torch.distributions.Categorical(torch.tensor(mixture.weights))
    return torch.distributions.MixtureSameFamily(weights, components)


@by_mixture
def test_density_and_score_are_torchs(mixture):
    for x_t, alpha_bar in zip(X_T, ALPHA_BAR, strict=True):
        x = torch.tensor(x_t.reshape(1, 2), requires_grad=True)
        log_p = torch_density(mixture, alpha_bar).log_prob(x)
        log_p.sum().backward()
        np.testing.assert_allclose(mixture.log_density(x_t[None], alpha_bar), log_p.detach().numpy(), rtol=1e-9)
        np.testing.assert_allclose(mixture.score(x_t[None], alpha_bar).reshape(1, 2), x.grad, rtol=1e-8, atol=1e-10)


@by_mixture
def test_every_point_has_its_noise_level(mixture):
    for found in (mixture.log_density, mixture.score, lambda *a: mixture.x0_and_eps(*a)[0]):
        each = np.concatenate([found(x_t[None], a) for x_t, a in zip(X_T, ALPHA_BAR, strict=True)])
        np.testing.assert_allclose(found(X_T, ALPHA_BAR), each, rtol=1e-12)


@by_mixture
def test_denoiser_is_tweedies_formula(mixture):
    """x_t = sqrt(alpha_bar) E[x0 | x_t] + sqrt(1 - alpha_bar) E[eps | x_t], and the latter is the score's."""
    x0, eps = mixture.x0_and_eps(X_T, ALPHA_BAR)
    signal, noise = (np.sqrt(a).reshape(-1, 1, 1, 1) for a in (ALPHA_BAR, 1 - ALPHA_BAR))
    np.testing.assert_allclose(signal * x0 + noise * eps, X_T, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(eps, -noise * mixture.score(X_T, ALPHA_BAR), rtol=1e-12)


def test_denoiser_is_the_integral_of_the_posterior():
    """In one dimension: the integral of x0 p(x0) q(x_t | x0) over x0, divided by that of p(x0) q(x_t | x0)."""
    mixture = md.GaussianMixture(np.array([[-0.6], [0.5]]), np.array([[0.15], [0.25]]), np.array([1, 2]))
    grid = np.linspace(-4, 4, 8001)
    for alpha_bar in (0.95, 0.5, 0.02):
        for x_t in (-1.1, 0.2, 0.9):
            joint = np.exp(mixture.log_density(grid.reshape(-1, 1, 1, 1)))
            joint *= np.exp(-((x_t - math.sqrt(alpha_bar) * grid) ** 2) / (2 * (1 - alpha_bar)))
            x0, _ = mixture.x0_and_eps(np.full((1, 1, 1, 1), x_t), alpha_bar)
            np.testing.assert_allclose(x0.item(), (grid * joint).sum() / joint.sum(), rtol=1e-9)


def test_denoiser_of_a_finite_set_is_a_softmax_of_distances():
    images = RNG.uniform(-1, 1, (4, 3, 2, 1))
    mixture, x_t, alpha_bar = md.GaussianMixture(images), RNG.standard_normal((2, 3, 2, 1)), 0.7
    distance2 = ((x_t[:, None] - math.sqrt(alpha_bar) * images) ** 2).sum((2, 3, 4))  # (2, 4)
    weights = np.exp(-distance2 / (2 * (1 - alpha_bar)))
    want = np.einsum("nk,khwc->nhwc", weights / weights.sum(1, keepdims=True), images)
    np.testing.assert_allclose(mixture.x0_and_eps(x_t, alpha_bar)[0], want, rtol=1e-10)


def test_pure_noise_says_nothing_of_x0():
    for mixture in MIXTURES.values():
        x0, eps = mixture.x0_and_eps(X_T, 0.0)
        np.testing.assert_allclose(x0, np.broadcast_to(mixture.weights @ MEANS, (5, 1, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(eps, X_T, rtol=1e-12)


@by_mixture
def test_samples_have_the_mean_and_covariance(mixture):
    """Of 40,000 samples each component's share, mean and covariance: to some four standard errors."""
    x0, labels = mixture.sample(40_000, np.random.default_rng(1))
    for k in range(3):
        own = x0[labels == k].reshape(-1, 2)
        assert abs(len(own) / 40_000 - mixture.weights[k]) < 0.01
        np.testing.assert_allclose(own.mean(0), MEANS[k], rtol=0, atol=0.04)
        np.testing.assert_allclose(np.cov(own.T), covariances_of(mixture)[k], rtol=0, atol=0.03)


def test_one_class():
    """Two components of class 0, one of class 1; class 2 is the null class."""
    mixture = md.GaussianMixture(MEANS, 0.3, WEIGHTS, labels=np.array([0, 0, 1]))
    first, second = md.GaussianMixture(MEANS[:2], 0.3, WEIGHTS[:2]), md.GaussianMixture(MEANS[2:], 0.3)
    cond = np.array([0, 1, 2, 0, 1])
    assert mixture.null == 2
    for found in (
        lambda m, *a: m.log_density(*a),
        lambda m, *a: m.score(*a),
        lambda m, *a: np.concatenate(m.x0_and_eps(*a), 3),
    ):
        each = np.stack([found(m, X_T, 0.4) for m in (first, second, mixture)])
        np.testing.assert_allclose(found(mixture, X_T, 0.4, cond), each[cond, np.arange(5)], rtol=1e-12)
    x0, labels = mixture.sample(200, np.random.default_rng(0), np.repeat([0, 1], 100))
    np.testing.assert_array_equal(labels, np.repeat([0, 1], 100))
    assert np.abs(x0[100:].reshape(-1, 2) - MEANS[2]).max() < 5 * 0.3
    by_bayes = [
        np.exp(m.log_density(X_T, 0.4) - mixture.log_density(X_T, 0.4)) * w for m, w in ((first, 0.5), (second, 0.5))
    ]
    np.testing.assert_allclose(mixture.class_probabilities(X_T, 0.4), np.stack(by_bayes, 1), rtol=1e-10)


@pytest.mark.parametrize("t", [0, 37, 37.25])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_model_of_a_schedule_over_timesteps(prediction_type, t):
    schedule, mixture = md.cosine_schedule(100, prediction_type), MIXTURES["diagonal"]
    real_time = continuous_time(schedule)
    prediction = md.exact_model(mixture, schedule)(X_T, np.full(5, t))
    x0, eps = mixture.x0_and_eps(X_T, real_time.alpha_bar(t))
    for found, want in zip(x0_and_eps(real_time, prediction, X_T, t), (x0, eps), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun", "pndm"])
def test_sampling_keeps_the_dtype(sampler, dtype):
    """And ends near a point of a finite set, by class and unconditionally."""
    schedule, mixture = md.linear_schedule(200, 1e-3, 0.05), MIXTURES["finite set"]
    model, x_T = md.exact_model(mixture, schedule), RNG.standard_normal((6, 1, 1, 2)).astype(dtype)
    settings = md.Sampler(sampler, clip=None)
    for cond in (None, np.array([0, 1, 2, 0, 1, 2])):
        rng = np.random.default_rng(0)
        *_, (_, x_0, _) = md.sample(model, schedule, x_T.shape, rng, 200, settings, cond, x_T)
        assert x_0.dtype == dtype
        distances = np.abs(x_0.reshape(6, 1, 2) - MEANS).max(2)  # (6, 3)
        assert distances.min(1).max() < 0.05
        assert cond is None or (distances.argmin(1) == cond).all()


def test_karras_noise_levels_of_timesteps():
    """The exact model at a t between timesteps: samples keep the mixture's quantiles, so the median its median."""
    schedule, mixture = md.linear_schedule(), md.GaussianMixture(np.array([[-0.4], [0.4]]), 0.2)
    *_, (_, x_0, _) = md.sample(
        md.exact_model(mixture, schedule), schedule, (1, 1, 1, 1), None, 40,
        md.Sampler("heun", clip=None, karras=True), x_T=np.zeros((1, 1, 1, 1)),
    )  # fmt: skip
    np.testing.assert_allclose(x_0, 0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"means": np.zeros(3)}, "means must be finite, of shape"),
        ({"means": np.full((1, 2), np.nan)}, "means must be finite"),
        ({"std": -1.0}, "std must be a number"),
        ({"std": np.ones(2)}, "std must be a number"),
        ({"weights": np.array([1.0, 0.0])}, "weights must be"),
        ({"weights": np.ones(3)}, "weights must be"),
        ({"labels": np.array([0.0, 1.0])}, "labels must be"),
        ({"labels": np.array([-1, 1])}, "labels must be"),
        ({"covariances": np.ones((2, 2))}, "covariances must be symmetric"),
        ({"covariances": np.array([[[1, 2], [0, 1]]] * 2)}, "covariances must be symmetric"),
        ({"covariances": np.array([[[1, 2], [2, 1]]] * 2)}, "covariances must be positive semidefinite"),
    ],
)
def test_invalid_mixtures_are_refused(arguments, message):
    refused(lambda: md.GaussianMixture(**{"means": np.zeros((2, 2)), **arguments}), match=message)


def test_invalid_points_are_refused():
    mixture = MIXTURES["isotropic"]
    refused(lambda: mixture.score(np.zeros((1, 2)), 0.5), match="x_t has shape")
    refused(lambda: mixture.score(X_T, 1.5), match="alpha_bar must be from 0 to 1")
    refused(lambda: mixture.score(X_T, 0.5, np.full(5, 7)), match="cond must be labels of the mixture or 3")
    refused(lambda: MIXTURES["finite set"].score(X_T), match="no density without noise")
