"""training_loss: the formula with each prediction target, the model's arguments, and the gradient."""

import numpy as np
import pytest

from minidiff.diffusion.continuous import EDM, Flow
from minidiff.diffusion.forward import q_sample, target, x0_and_eps
from minidiff.diffusion.loss import min_snr_weight, training_loss
from minidiff.diffusion.schedule import Schedule, linear_schedule, rescale_zero_terminal_snr, stratified_t
from minidiff.engine.backend import get_backend
from minidiff.engine.functional import mul
from minidiff.engine.tensor import Tensor
from minidiff.errors import MinidiffError

BACKEND = get_backend("numpy")
SHAPE = (3, 2, 4, 2)
T_3 = np.array([0, 4, 9])
X0, EPS = (np.random.default_rng(seed).standard_normal(SHAPE, dtype=np.float32) for seed in (0, 1))


def scale_model(w):
    """x_t times a scalar w, the simplest model that can learn."""
    return lambda x_t, t: mul(Tensor(x_t, BACKEND), w)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_loss_and_its_gradient_are_the_formulas(prediction_type):
    schedule = linear_schedule(10, 0.01, 0.4, prediction_type)
    w = Tensor(np.array([0.7], dtype=np.float32), BACKEND, requires_grad=True)
    loss = training_loss(scale_model(w), schedule, X0, T_3, EPS)
    loss.backward()

    alpha_bar = np.cumprod(1 - np.linspace(0.01, 0.4, 10))[T_3].reshape(3, 1, 1, 1)
    x0, eps = X0.astype(np.float64), EPS.astype(np.float64)
    x_t = np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * eps
    v = np.sqrt(alpha_bar) * eps - np.sqrt(1 - alpha_bar) * x0
    residual = 0.7 * x_t - {"epsilon": eps, "sample": x0, "v_prediction": v}[prediction_type]
    # float32: some six roundings (6e-8) of every value, and at worst as many again in sums of 48.
    np.testing.assert_allclose(loss.numpy(), np.mean(residual**2), rtol=1e-6)
    np.testing.assert_allclose(w.grad, [np.mean(2 * residual * x_t)], rtol=0, atol=2e-6)  # of terms below 4


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_weight_for_each_image(prediction_type):
    schedule = linear_schedule(10, 0.01, 0.4, prediction_type)
    weight = np.array([0.5, 2.0, 0.0])
    w = Tensor(np.array([0.7], dtype=np.float32), BACKEND)

    def alone(i):
        one = slice(i, i + 1)
        return training_loss(scale_model(w), schedule, X0[one], T_3[one], EPS[one]).numpy()

    loss = training_loss(scale_model(w), schedule, X0, T_3, EPS, weight=weight)
    np.testing.assert_allclose(loss.numpy(), np.mean([0.5 * alone(0), 2 * alone(1), 0]), rtol=1e-6)


@pytest.mark.parametrize("weight", [None, np.array([0.5, 2.0, 0.0])])
def test_each_images_error_and_the_loss_is_the_same_with_and_without(weight):
    schedule, errors = linear_schedule(10, 0.01, 0.4), []
    w, v = (Tensor(np.array([0.7], dtype=np.float32), BACKEND, requires_grad=True) for _ in range(2))
    loss = training_loss(scale_model(w), schedule, X0, T_3, EPS, weight=weight, each=errors.append)
    plain = training_loss(scale_model(v), schedule, X0, T_3, EPS, weight=weight)
    alone = [training_loss(scale_model(w), schedule, X0[i : i + 1], T_3[i : i + 1], EPS[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(errors, [[float(one.numpy()) for one in alone]], rtol=1e-6)
    loss.backward()
    plain.backward()
    assert loss.numpy() == plain.numpy() and w.grad.tobytes() == v.grad.tobytes()


@pytest.mark.parametrize("schedule", [linear_schedule(1000), linear_schedule(3), EDM(), Flow()])
def test_quantiles_of_the_training_distribution(schedule):
    """Of 40,000 draws, a quarter in each quarter: within five standard deviations; three timesteps have no quarters."""
    t = schedule.sample_t(np.random.default_rng(0), 40_000)
    quantiles = schedule.quantile(t)
    assert quantiles.shape == t.shape and quantiles.min() >= 0 and quantiles.max() < 1
    assert (np.diff(quantiles[np.argsort(t)]) >= 0).all()
    if not (isinstance(schedule, Schedule) and len(schedule) == 3):
        np.testing.assert_allclose(np.histogram(quantiles, 4, (0, 1))[0], 10_000, atol=5 * (40_000 * 3 / 16) ** 0.5)


@pytest.mark.parametrize("schedule", [linear_schedule(1000), linear_schedule(3), EDM(), Flow()])
def test_at_quantile_is_the_inverse_of_quantile(schedule):
    t = schedule.sample_t(np.random.default_rng(0), 100)
    np.testing.assert_allclose(schedule.at_quantile(schedule.quantile(t) + 1e-12), t, rtol=1e-6)
    assert np.isfinite(schedule.alpha_bar(schedule.at_quantile(np.array([0.0, 1.0])))).all()


@pytest.mark.parametrize("schedule", [linear_schedule(1000), EDM(), Flow()])
def test_stratified_timesteps(schedule):
    """One from each n-th of the distribution, in random order; each alone is distributed as one that is drawn."""
    draws = np.stack([stratified_t(schedule, np.random.default_rng([1, i]), 8) for i in range(2000)])
    quantiles = schedule.quantile(draws.ravel()).reshape(draws.shape)
    assert (np.sort((quantiles * 8 + 1e-6).astype(int)) == np.arange(8)).all()
    first = np.histogram(quantiles[:, 0], 4, (0, 1))[0]
    np.testing.assert_allclose(first, 500, atol=5 * (2000 * 3 / 16) ** 0.5)


def test_min_snr_weights_the_error_of_x0_alike_for_all_prediction_types():
    """Hang et al.: the squared error of x0_hat has the weight min(SNR, 5), whatever the prediction type."""
    t = np.arange(10)
    alpha_bar = linear_schedule(10, 0.01, 0.4).alphas_cumprod
    ratio = alpha_bar / (1 - alpha_bar)
    wrong = 0.3  # in x0_hat; then eps_hat is off by 0.3 sqrt(SNR), and v_hat by 0.3 / sqrt(1 - alpha_bar)
    off = {"epsilon": wrong * np.sqrt(ratio), "sample": wrong, "v_prediction": wrong / np.sqrt(1 - alpha_bar)}
    for prediction_type, error in off.items():
        weight = min_snr_weight(linear_schedule(10, 0.01, 0.4, prediction_type), t)
        np.testing.assert_allclose(weight * error**2, np.minimum(ratio, 5) * wrong**2, rtol=1e-12)


@pytest.mark.parametrize("schedule", [EDM(), Flow()], ids=["edm", "flow"])
def test_min_snr_of_continuous_times(schedule):
    """As above: an error d of the prediction is one of some factor times d in x0_hat."""
    t = np.array([0.02, 0.3, 0.9])
    x0, eps = X0.astype(np.float64), EPS.astype(np.float64)
    x_t, prediction = q_sample(schedule, x0, t, eps), target(schedule, x0, t, eps)
    off = x0_and_eps(schedule, prediction + 1, x_t, t)[0] - x0_and_eps(schedule, prediction, x_t, t)[0]
    ratio = schedule.alpha_bar(t) / (1 - schedule.alpha_bar(t))
    np.testing.assert_allclose(min_snr_weight(schedule, t), np.minimum(ratio, 5) * off[:, 0, 0, 0] ** 2, rtol=1e-9)


def test_min_snr_at_zero_terminal_snr():
    schedule = rescale_zero_terminal_snr(linear_schedule(10, 0.01, 0.4, "v_prediction"))
    weight = min_snr_weight(schedule, np.arange(10))
    assert weight[-1] == 0 and np.all(weight[:-1] > 0)


def test_the_exact_prediction_has_loss_zero():
    loss = training_loss(lambda x_t, t: Tensor(EPS, BACKEND), linear_schedule(10), X0, T_3, EPS)
    assert loss.numpy() == 0 and loss.shape == ()


def test_the_model_receives_x_t_and_t():
    def model(x_t, t):
        np.testing.assert_allclose(x_t, 0.8 * X0 + 0.6 * EPS, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(t, np.zeros(3, int))
        return Tensor(x_t, BACKEND)

    training_loss(model, Schedule(np.array([0.36])), X0, np.zeros(3, int), EPS)


def test_cond_and_rng_are_passed_only_if_given():
    received = []

    def model(x_t, t, **extras):
        received.append(extras)
        return Tensor(x_t, BACKEND)

    labels, rng = np.array([1, 0, 2]), np.random.default_rng(0)
    for extras in ({}, {"cond": labels}, {"rng": rng}, {"cond": labels, "rng": rng}):
        training_loss(model, linear_schedule(10), X0, T_3, EPS, **extras)
        assert received.pop() == extras


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_zero_terminal_snr_has_a_finite_loss(prediction_type):
    schedule = rescale_zero_terminal_snr(linear_schedule(10, prediction_type=prediction_type))
    loss = training_loss(lambda x_t, t: Tensor(x_t, BACKEND), schedule, X0, T_3, EPS)
    assert np.isfinite(loss.numpy())


def test_zero_terminal_snr_with_epsilon_is_refused():
    with pytest.raises(MinidiffError, match="zero terminal SNR"):
        rescale_zero_terminal_snr(linear_schedule(10))


def test_a_t_out_of_range_is_refused():
    with pytest.raises(MinidiffError, match="from 0 to 9"):
        training_loss(lambda x_t, t: Tensor(x_t, BACKEND), linear_schedule(10), X0, np.array([0, 5, 10]), EPS)
