"""Checks of samplers, inversion, inpainting, prediction targets, guidance and likelihoods against the exact model.

Each raises AssertionError if what it checks is wrong. In tests/diffusion/, test_orders.py, test_sde.py,
test_editing.py, test_objectives.py and test_likelihood.py run them on the library, test_exact_mutants.py on a library
with one mistake.
"""

import math
from itertools import count

import numpy as np

from minidiff.diffusion.bound import bits_per_dim
from minidiff.diffusion.continuous import EDM, Flow
from minidiff.diffusion.editing import INVERTIBLE, inpainting, invert, repaint
from minidiff.diffusion.exact import GaussianMixture, exact_model
from minidiff.diffusion.forward import target, x0_and_eps
from minidiff.diffusion.guidance import autoguided, classifier_gradient, classifier_guided, guided
from minidiff.diffusion.likelihood import log_likelihood, ode_bits_per_dim
from minidiff.diffusion.loss import (
    importance_sample,
    loss_history,
    min_snr_weight,
    record_losses,
    training_loss,
)
from minidiff.diffusion.reverse import last_x_t, sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import cosine_schedule, from_alphas_cumprod, linear_schedule, snr
from minidiff.diffusion.sde import euler_maruyama, probability_flow, reverse_sde, score_of, ve_sde, vp_sde
from minidiff.engine import functional as F
from minidiff.engine.backend import get_backend
from minidiff.engine.tensor import Tensor

MIXTURE = GaussianMixture(np.array([[-0.6], [0.5]]), np.array([[0.15], [0.25]]), np.array([1, 2]))
SIGMA_MIN, SIGMA_MAX = 0.05, 10.0
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "edm", "flow")


def image_losses(model, schedule, x0, t, eps):
    """The loss of each image, (N,), that `training_loss` reports."""
    found = []
    training_loss(model, schedule, x0, t, eps, each=found.append)
    (losses,) = found
    return losses


def even_schedule(n, prediction_type="epsilon"):
    """n + 1 noise levels, even in log-SNR from SIGMA_MIN to SIGMA_MAX."""
    return from_alphas_cumprod(1 / (1 + np.geomspace(SIGMA_MIN, SIGMA_MAX, n + 1) ** 2), prediction_type)


def at_sigma_min(model, schedule, x_T, rng, sampler):
    """The state of the sampling loop at SIGMA_MIN, after all steps but the last, which is to alpha_bar = 1."""
    steps = sample(model, schedule, x_T.shape, rng, len(schedule), sampler, x_T=x_T)
    *_, (_, x_t, _), _ = steps
    return x_t


def slope(counts, errors):
    """The order of convergence: minus the slope of log(error) over log(number of steps)."""
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


# Deterministic samplers


def cdf(x, alpha_bar):
    """P(x_t <= x) of MIXTURE: float."""
    z = (x - np.sqrt(alpha_bar) * MIXTURE.means[:, 0]) / np.sqrt(alpha_bar * MIXTURE.std[:, 0] ** 2 + 1 - alpha_bar)
    return sum(w * 0.5 * math.erfc(-z / math.sqrt(2)) for w, z in zip(MIXTURE.weights, z, strict=True))


def flow_endpoint(x_T, alpha_bar_T, alpha_bar):
    """The probability flow's solution at alpha_bar: in one dimension it keeps every quantile. By bisection."""
    p, low, high = cdf(x_T, alpha_bar_T), -10.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cdf(middle, alpha_bar) < p else (low, middle)
    return (low + high) / 2


def endpoint_errors(name, prediction_type, counts):
    """The largest distance of a sampler's endpoints from the exact ones, for each number of steps."""
    x_T = np.linspace(-2, 2, 9)
    alpha_bar_T, alpha_bar = even_schedule(1).alphas_cumprod[::-1]
    exact = [flow_endpoint(x, alpha_bar_T, alpha_bar) for x in x_T]
    errors = []
    for n in counts:
        schedule = even_schedule(n, prediction_type)
        model, sampler = exact_model(MIXTURE, schedule), Sampler(name, clip=None)
        x = at_sigma_min(model, schedule, x_T.reshape(-1, 1, 1, 1), None, sampler)
        assert x.dtype == np.float64
        errors.append(np.abs(x.ravel() - exact).max())
    return errors


# unipc's predictor is of order 2, its corrector raises it by one (Zhao et al. 2023, theorem 3.1)
ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpmpp_2m": 2, "unipc": 3}
COUNTS = (16, 32, 64, 128)
STOCHASTIC_COUNTS = (32, 64, 128, 256)  # whose errors fall with their order from more steps on


def check_order(name, prediction_type="epsilon"):
    found = slope(COUNTS, endpoint_errors(name, prediction_type, COUNTS))
    assert abs(found - ORDERS[name]) < 0.2, found


def check_pndm():
    """No order is claimed. With 64 steps its error is a fiftieth of ddim's at most."""
    (pndm,), (ddim,) = (endpoint_errors(name, "epsilon", (64,)) for name in ("pndm", "ddim"))
    assert pndm < ddim / 50, (pndm, ddim)


# Stochastic samplers: of Gaussian data, where a sampler's end is A x_T + B + sum_i C_i z_i

MEAN, STD, X_T = 0.3, 0.4, 1.5
GAUSSIAN = GaussianMixture(np.array([[MEAN]]), STD)


class UnitNoise:
    """A generator whose i-th noise is 1 in row i + 2 and 0 elsewhere."""

    def __init__(self):
        self.calls = count(2)

    def standard_normal(self, shape, dtype=np.float64):
        z = np.zeros(shape, dtype)
        z[next(self.calls)] = 1
        return z


def coefficients(run, n):
    """A, B and C (2n,) of run(x_T, rng), which draws noise at most 2n times, from one run of 2n + 2 rows."""
    x_T = np.zeros((2 * n + 2, 1, 1, 1))
    x_T[1] = 1
    x = run(x_T, UnitNoise()).ravel()
    return x[1] - x[0], x[0], x[2:] - x[0]


def sampler_run(sampler):
    def run_of(n):
        schedule = even_schedule(n)
        model = exact_model(GAUSSIAN, schedule)
        return lambda x_T, rng: at_sigma_min(model, schedule, x_T, rng, sampler)

    return run_of


def euler_maruyama_run(n):
    schedule = even_schedule(n)
    sde = reverse_sde(vp_sde(schedule), score_of(exact_model(GAUSSIAN, schedule), schedule))

    def run(x_T, rng):
        *_, (_, x) = euler_maruyama(sde, x_T, range(n, -1, -1), lambda: rng.standard_normal(x_T.shape))
        return x

    return run


def euler_maruyama_edm_run(n):
    """Over EDM's own time, and in its own x = x_t / sqrt(alpha_bar): the variance-exploding SDE."""
    schedule = EDM()
    score = score_of(exact_model(GAUSSIAN, schedule), schedule)

    def ve_score(x, t):
        root = math.sqrt(schedule.alpha_bar(t))
        return root * score(root * x, t)

    def run(x_T, rng):
        ts = np.geomspace(SIGMA_MAX, SIGMA_MIN, n + 1)
        x = x_T * np.sqrt(1 + SIGMA_MAX**2)
        sde = reverse_sde(ve_sde(schedule), ve_score)
        *_, (_, x) = euler_maruyama(sde, x, ts, lambda: rng.standard_normal(x_T.shape))
        return x / np.sqrt(1 + SIGMA_MIN**2)

    return run


def marginal(alpha_bar):
    """Mean and variance of x_t."""
    return math.sqrt(alpha_bar) * MEAN, alpha_bar * STD**2 + 1 - alpha_bar


def conditional_moments():
    """Mean and variance of x at SIGMA_MIN given x_T = X_T: the joint distribution is normal."""
    alpha_bar_T, alpha_bar = even_schedule(1).alphas_cumprod[::-1]
    (mean_T, variance_T), (mean, variance) = marginal(alpha_bar_T), marginal(alpha_bar)
    gain = math.sqrt(alpha_bar_T / alpha_bar) * variance / variance_T
    return mean + gain * (X_T - mean_T), variance - gain**2 * variance_T


def conditional_errors(run_of, counts):
    """The errors of both moments for each number of steps: (counts, 2)."""
    errors = []
    for n in counts:
        A, B, C = coefficients(run_of(n), n)
        errors.append(np.abs(np.array([A * X_T + B, C @ C]) - conditional_moments()))
    return np.array(errors)


def check_ancestral(sampler, order=1):
    """The mean of each step is E[x_s | x_t], so that of all steps is exact; the variance converges with an order.

    E[x0 | x_t] is a martingale of the reverse SDE: its extrapolation by dpmpp_2m_sde has the same mean.
    """
    mean, variance = conditional_errors(sampler_run(sampler), STOCHASTIC_COUNTS).T
    assert mean.max() < 1e-9, mean
    assert abs(slope(STOCHASTIC_COUNTS, variance) - order) < 0.2, variance


def check_euler_maruyama(run_of=euler_maruyama_run):
    """Weak order 1 of both moments."""
    for errors in conditional_errors(run_of, STOCHASTIC_COUNTS).T:
        assert abs(slope(STOCHASTIC_COUNTS, errors) - 1) < 0.2, errors


def check_eta():
    """ddim with half the noise: the marginal variance, from that of x_T, converges with order 1."""
    errors = []
    for n in STOCHASTIC_COUNTS:
        A, B, C = coefficients(sampler_run(Sampler("ddim", eta=0.5, clip=None))(n), n)
        alpha_bar_T, alpha_bar = even_schedule(1).alphas_cumprod[::-1]
        errors.append(abs(A**2 * marginal(alpha_bar_T)[1] + C @ C - marginal(alpha_bar)[1]))
        assert C[0] > 0
    assert abs(slope(STOCHASTIC_COUNTS, errors) - 1) < 0.2, errors


CHURN = {"euler": 1, "heun": 2}  # their orders


def check_churn(name, interval=(0.0, math.inf)):
    """Added noise keeps the distributions p(x_t), so the marginal variance converges with the solver's order.

    The marginal mean is exact: the slope at the mean of p(x_t) is 0.
    """
    errors, drawn = [], []
    ends = even_schedule(1).alphas_cumprod[::-1]
    (mean_T, variance_T), (mean, variance) = (marginal(alpha_bar) for alpha_bar in ends)
    for n in STOCHASTIC_COUNTS:
        sampler = Sampler(name, clip=None, churn=6.0, churn_interval=interval)
        A, B, C = coefficients(sampler_run(sampler)(n), n)
        errors.append([abs(A * mean_T + B - mean), abs(A**2 * variance_T + C @ C - variance)])
        drawn.append(np.count_nonzero(C) / n)
    of_mean, of_variance = np.transpose(errors)
    assert of_mean.max() < 1e-9, of_mean
    assert abs(slope(STOCHASTIC_COUNTS, of_variance) - CHURN[name]) < 0.2, of_variance
    inside = np.diff(np.log(np.clip(interval, SIGMA_MIN, SIGMA_MAX)))[0] / math.log(SIGMA_MAX / SIGMA_MIN)
    assert np.abs(np.array(drawn) - inside).max() < 0.05, drawn  # steps with noise: those within the interval


def check_probability_flow():
    """Heun's method on the ODE of x_t, over the schedule's own time, ends at the same quantile: order 2."""
    errors, x_T = [], np.linspace(-2, 2, 9)
    schedule = EDM()
    dx = probability_flow(vp_sde(schedule), score_of(exact_model(MIXTURE, schedule), schedule))
    exact = [flow_endpoint(x, *schedule.alpha_bar([SIGMA_MAX, SIGMA_MIN])) for x in x_T]
    for n in COUNTS:
        ts, x = np.geomspace(SIGMA_MAX, SIGMA_MIN, n + 1), x_T.reshape(-1, 1, 1, 1)
        for t, t_next in zip(ts, ts[1:], strict=False):
            begin = dx(x, t)
            x = x + (t_next - t) / 2 * (begin + dx(x + (t_next - t) * begin, t_next))
        errors.append(np.abs(x.ravel() - exact).max())
    assert abs(slope(COUNTS, errors) - 2) < 0.2, errors


def check_forward_sde(schedule, ts):
    """Euler-Maruyama on the forward SDE from x_0 = X_T at ts[0]: mean and variance of q(x_t | x_s), to 2 %."""
    A, _, C = coefficients(
        lambda x, rng: list(euler_maruyama(vp_sde(schedule), x, ts, lambda: rng.standard_normal(x.shape)))[-1][1],
        len(ts) - 1,
    )
    alpha_bar_s, alpha_bar_t = (float(schedule.alpha_bar(t)) for t in (ts[0], ts[-1]))
    np.testing.assert_allclose([A**2, C @ C], [alpha_bar_t / alpha_bar_s, 1 - alpha_bar_t / alpha_bar_s], rtol=0.02)


# Two samples

N_SAMPLES = 10_000
# The Kolmogorov-Smirnov distance above which a test of level 1/1000 rejects two samples of N_SAMPLES: 0.0276. Samples
# of MIXTURE and of it shifted by SHIFT, whose distribution functions are 0.055 apart, exceed it with probability above
# 0.999: the difference of the empirical functions there has a standard deviation of at most sqrt(1 / (2 N_SAMPLES)) =
# 0.0071, and 0.0276 is 3.8 of them away.
SHIFT = 0.055
REJECTED = math.sqrt(-math.log(0.001 / 2) / N_SAMPLES)


def ks_distance(a, b):
    """The largest distance of the empirical distribution functions."""
    both = np.concatenate([a, b])
    at_or_below = [np.searchsorted(np.sort(c), both, "right") / len(c) for c in (a, b)]
    return np.abs(at_or_below[0] - at_or_below[1]).max()


def check_samples(sampler, schedule=EDM(), steps=100):  # noqa: B008  frozen
    rng = np.random.default_rng(0)
    shape = (N_SAMPLES, 1, 1, 1)
    *_, (_, x_0, _) = sample(exact_model(MIXTURE, schedule), schedule, shape, rng, steps, sampler)
    exact, _ = MIXTURE.sample(N_SAMPLES, rng)
    found = ks_distance(x_0.ravel(), exact.ravel())
    assert found < REJECTED, found


# Inversion and inpainting


def check_round_trip(prediction_type):
    """Inversion and DDIM's 50 steps give the points back: every fixed-point iteration divides the error by 2 or more.

    |tan(d) dv/dx| is below 0.5 for MIXTURE and these noise levels.
    """
    cosine = prediction_type == "v_prediction"  # as runs have it
    schedule = cosine_schedule(1000, prediction_type) if cosine else schedule_of(prediction_type)
    model, x0, errors = exact_model(MIXTURE, schedule), np.linspace(-1, 1, 9).reshape(-1, 1, 1, 1), []
    for fixed_point in (0, 3, 30):
        x_T = last_x_t(invert(model, schedule, x0, 50, fixed_point=fixed_point))
        again = last_x_t(sample(model, schedule, x0.shape, np.random.default_rng(0), 50, INVERTIBLE, x_T=x_T))
        errors.append(np.abs(again - x0).mean())
    assert 1e-3 < errors[0] < 0.1, errors
    assert errors[1] < errors[0] / 2**3 and errors[2] < errors[0] / 2**30 + 1e-12, errors


def check_inversion_order(fixed_point):
    """From SIGMA_MIN to SIGMA_MAX inversion follows the probability flow, whose solution keeps quantiles: order 1."""
    alpha_bar, alpha_bar_T = even_schedule(1).alphas_cumprod
    errors, x0 = [], np.linspace(-1, 1, 9).reshape(-1, 1, 1, 1)
    for n in COUNTS:
        schedule = even_schedule(n)
        (t, x, _), *_, (_, x_T, _) = invert(exact_model(MIXTURE, schedule), schedule, x0, n + 1, None, fixed_point)
        assert t == 0  # the first step is to SIGMA_MIN
        exact = [flow_endpoint(value, alpha_bar, alpha_bar_T) for value in x.ravel()]
        errors.append(np.abs(x_T.ravel() - exact).max())
    assert abs(slope(COUNTS, errors) - 1) < 0.2, errors


CORRELATION, KNOWN = 0.8, 0.4
CORRELATED = GaussianMixture(np.zeros((1, 2)), covariances=STD**2 * np.array([[[1, CORRELATION], [CORRELATION, 1]]]))


class UnitNoiseOfPoints:
    """A generator whose i-th noise is 1 in the first coordinate of row 2 i + 1 and in the second of row 2 i + 2."""

    def __init__(self):
        self.row = 1

    def standard_normal(self, shape, dtype=np.float64):
        z = np.zeros(shape, dtype)
        z[self.row, ..., 0] = z[self.row + 1, ..., 1] = 1
        self.row += 2
        return z


def inpainted_moments(schedule, steps, resample=None):
    """Mean and variance of CORRELATED's second coordinate, inpainted with the first at KNOWN.

    Every method is linear in its noise there, so that both follow exactly from one run: the sum of the squared
    coefficients of all noise is the variance. resample None: the model of `inpainting`, with DDIM.
    """
    draws = 1 if resample is None else 1 + (steps - 1) * (3 * resample - 1)
    model, mask, rng = exact_model(CORRELATED, schedule), np.array([[[False, True]]]), UnitNoiseOfPoints()
    x0 = np.zeros((2 * draws + 1, 1, 1, 2))
    x0[..., 0] = KNOWN
    if resample is None:
        model = inpainting(model, schedule, x0, mask)
        x = last_x_t(sample(model, schedule, x0.shape, rng, steps, Sampler(clip=None)))
    else:
        x = last_x_t(repaint(model, schedule, x0, mask, rng, steps, resample=resample, clip=None))
    assert rng.row == len(x) and np.allclose(x[..., 0], KNOWN, atol=1e-5)
    x = x[:, 0, 0, 1]
    return np.array([x[0], np.sum((x[1:] - x[0]) ** 2)])


def check_repaint(prediction_type="epsilon"):
    """Every resampling brings the mean nearer to the exact conditional one. With nine, both moments' relative errors,
    which the 30 steps limit, are a fifth of `inpainting`'s at most.
    """
    schedule, exact = even_schedule(29, prediction_type), [CORRELATION * KNOWN, STD**2 * (1 - CORRELATION**2)]
    moments = np.array([inpainted_moments(schedule, 30, resample) for resample in (None, 1, 3, 9)])
    means, variances = np.abs(moments / exact - 1).T
    assert np.all(np.diff(means) < 0), means
    assert means[-1] < means[0] / 5 and variances[-1] < variances[0] / 5, (means, variances)


def check_repaint_known(n=9):
    """After every step the known coordinate is KNOWN with the noise of the level reached: its mean and variance."""
    schedule, x0 = even_schedule(n), np.zeros((2 * (1 + 5 * n) + 1, 1, 1, 2))
    x0[..., 0] = KNOWN
    model, mask = exact_model(CORRELATED, schedule), np.array([[[False, True]]])
    trajectory = repaint(model, schedule, x0, mask, UnitNoiseOfPoints(), n + 1, resample=2, clip=None)
    for (_, x_t, _), alpha_bar in zip(trajectory, [*schedule.alphas_cumprod[-2::-1], 1.0], strict=True):
        known = x_t[:, 0, 0, 0]
        found = known[0], np.sum((known[1:] - known[0]) ** 2)
        np.testing.assert_allclose(found, [math.sqrt(alpha_bar) * KNOWN, 1 - alpha_bar], rtol=1e-9, atol=1e-12)


# Prediction targets

FINITE = GaussianMixture(np.array([[-0.7], [0.1], [0.6]]), weights=np.array([2, 1, 3]))


def schedule_of(prediction_type):
    return {"edm": EDM(), "flow": Flow()}.get(prediction_type) or linear_schedule(200, 1e-3, 0.05, prediction_type)


def times_of(prediction_type):
    return {"edm": (0.1, 0.5, 3.0), "flow": (0.1, 0.4, 0.9)}.get(prediction_type, (5, 40, 190))


def papers_target(prediction_type, x0, eps, alpha_bar):
    """The target as its paper writes it, with EDM's sigma and sigma_data = 0.5, or rectified flow's t."""
    sigma = np.sqrt(1 / alpha_bar - 1)
    c_skip, c_out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / np.sqrt(sigma**2 + 0.25)
    return {
        "epsilon": eps,
        "sample": x0,
        "v_prediction": np.sqrt(alpha_bar) * eps - np.sqrt(1 - alpha_bar) * x0,
        "edm": (x0 - c_skip * (x0 + sigma * eps)) / c_out,
        "flow": eps - x0,
    }[prediction_type]


def check_target(prediction_type):
    """The exact model's prediction is the paper's target, and x0_and_eps gives the exact x0_hat and eps_hat back."""
    schedule, x_t = schedule_of(prediction_type), np.linspace(-2, 2, 12).reshape(4, 1, 1, 3)
    mixture = GaussianMixture(np.array([[-0.6, 0.1, 0.4], [0.5, 0.0, -0.2]]), 0.2)
    for t in times_of(prediction_type):
        alpha_bar = float(schedule.alpha_bar(t))
        x0, eps = mixture.x0_and_eps(x_t, alpha_bar)
        want = papers_target(prediction_type, x0, eps, alpha_bar)
        np.testing.assert_allclose(exact_model(mixture, schedule)(x_t, t), want, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(target(schedule, x0, t, eps), want, rtol=1e-9, atol=1e-12)
        x0_hat, eps_hat = x0_and_eps(schedule, want, x_t, t)
        np.testing.assert_allclose(x0_hat, x0, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(eps_hat, eps, rtol=1e-8, atol=1e-10)


def expected_loss(model, schedule, t):
    """The expectation of training_loss over x0 in FINITE and eps, by the trapezoidal rule, exact to rounding here."""
    eps = np.linspace(-9, 9, 361)
    x0 = np.repeat(FINITE.means[:, 0], len(eps))
    density = np.exp(-(eps**2) / 2) / math.sqrt(2 * math.pi) * (eps[1] - eps[0])
    weight = np.outer(FINITE.weights, density).ravel() * len(x0)
    x0, eps = x0.reshape(-1, 1, 1, 1), np.tile(eps, len(FINITE.means)).reshape(-1, 1, 1, 1)
    return float(training_loss(model, schedule, x0, np.full(len(x0), t), eps, weight=weight).numpy())


def check_minimiser(prediction_type):
    """The loss, quadratic in the prediction, is least at E[target | x_t]: its derivative is 0 in every direction."""
    schedule, backend, step = schedule_of(prediction_type), get_backend("numpy"), 0.1

    def best(x_t, t):
        alpha_bar = float(schedule.alpha_bar(t[0]))
        return papers_target(prediction_type, *FINITE.x0_and_eps(x_t, alpha_bar), alpha_bar)

    for t in times_of(prediction_type):
        for direction in (np.ones_like, np.array, np.tanh, lambda x: np.sin(3 * x)):

            def loss(change, t=t, direction=direction):
                return expected_loss(lambda x, t: Tensor(best(x, t) + change * direction(x), backend), schedule, t)

            less, least, more = loss(-step), loss(0.0), loss(step)
            assert abs(more - less) / step < 1e-8 * max(1, least), (t, more - less)
            assert less > least < more


def check_min_snr(prediction_type):
    """The weighted squared error of the prediction is min(SNR, 5) times that of x0_hat."""
    schedule = schedule_of(prediction_type)
    zero, one = np.zeros((1, 1, 1, 1)), np.ones((1, 1, 1, 1))
    for t in times_of(prediction_type):
        x0_error = x0_and_eps(schedule, one, zero, t)[0] - x0_and_eps(schedule, zero, zero, t)[0]
        want = min(float(snr(schedule, t)), 5) * float(x0_error.squeeze()) ** 2
        np.testing.assert_allclose(float(min_snr_weight(schedule, np.array(t))), want, rtol=1e-9)


# Guidance: two classes N(+-m, s^2), whose p(class 1 | x_t) is a logistic function

HALF_DISTANCE, CLASS_STD, NULL = 0.5, 0.3, 2
TWO_CLASSES = GaussianMixture(np.array([[-HALF_DISTANCE], [HALF_DISTANCE]]), CLASS_STD)


def class_gradient(x_t, alpha_bar):
    """grad log p(class 1 | x_t), in closed form."""
    rate = 2 * math.sqrt(alpha_bar) * HALF_DISTANCE / (alpha_bar * CLASS_STD**2 + 1 - alpha_bar)
    return rate / (1 + np.exp(rate * x_t))


def check_guidance(scale=2.3):
    """Guidance adds (scale - 1) times the classifier's gradient to the conditional score, within its interval alone."""
    schedule, x_t = linear_schedule(), np.linspace(-2, 2, 7).reshape(-1, 1, 1, 1)
    model, labels = exact_model(TWO_CLASSES, schedule), np.ones(7, np.int64)
    rule = guided(model, NULL, scale, interval=(50, 600))
    for t in (10, 50, 300, 600, 800):
        alpha_bar = float(schedule.alpha_bar(t))
        noise, gradient = math.sqrt(1 - alpha_bar), class_gradient(x_t, alpha_bar)
        conditional = -(x_t - math.sqrt(alpha_bar) * HALF_DISTANCE) / (alpha_bar * CLASS_STD**2 + noise**2)
        score = conditional + (scale - 1 if 50 <= t <= 600 else 0) * gradient
        np.testing.assert_allclose(rule(x_t, np.full(7, t), cond=labels), -noise * score, rtol=1e-9, atol=1e-12)


def check_classifier_guidance(prediction_type="epsilon"):
    """With the exact gradient, scale 1 gives the exact conditional model; scale s adds s times the gradient."""
    schedule, x_t = schedule_of(prediction_type), np.linspace(-2, 2, 7).reshape(-1, 1, 1, 1)
    model, labels = exact_model(TWO_CLASSES, schedule), np.array([0, 1, 0, 1, 0, 1, 1])
    signs = (2 * labels - 1).reshape(-1, 1, 1, 1)

    def gradient(x_t, t, cond):
        """p(class 0 | x_t) = p(class 1 | -x_t)."""
        return signs * class_gradient(signs * x_t, float(schedule.alpha_bar(t[0])))

    for t in times_of(prediction_type):
        ts, alpha_bar = np.full(7, t), float(schedule.alpha_bar(t))
        conditional = classifier_guided(model, schedule, gradient, 1.0)(x_t, ts, cond=labels)
        np.testing.assert_allclose(conditional, model(x_t, ts, labels), rtol=1e-9, atol=1e-12)
        strong = classifier_guided(model, schedule, gradient, 2.5, interval=(t, t))(x_t, ts, cond=labels)
        x0_hat, eps_hat = x0_and_eps(schedule, strong, x_t, t)
        score = TWO_CLASSES.score(x_t, alpha_bar) + 2.5 * gradient(x_t, ts, labels)
        np.testing.assert_allclose(eps_hat, -math.sqrt(1 - alpha_bar) * score, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(math.sqrt(alpha_bar) * x0_hat + math.sqrt(1 - alpha_bar) * eps_hat, x_t, atol=1e-10)
        outside = classifier_guided(model, schedule, gradient, 2.5, interval=(t + 1, t + 2))(x_t, ts, cond=labels)
        np.testing.assert_array_equal(outside, model(x_t, ts))


class LogisticClassifier:
    """The exact classifier of TWO_CLASSES, on the tape: the logits are 0 and the rate of `class_gradient` times x_t."""

    backend = get_backend("numpy")

    def __call__(self, x_t, alpha_bar):
        rate = 2 * np.sqrt(alpha_bar) * HALF_DISTANCE / (alpha_bar * CLASS_STD**2 + 1 - alpha_bar)
        rates = Tensor(np.outer(rate, [0, 1]).reshape(-1, 1, 1, 2), self.backend)
        return F.reshape(F.mul(F.concat(x_t, x_t), rates), (len(alpha_bar), 2))


def check_classifier_gradient():
    """By the tape it is each image's own, in closed form. Where p is near 1 it is rate (1 - p), to p's rounding."""
    schedule, x_t = linear_schedule(), np.linspace(-2, 2, 7).reshape(-1, 1, 1, 1)
    gradient = classifier_gradient(LogisticClassifier(), schedule)
    for t in (0, 300, 999):
        found = gradient(x_t, np.full(7, t), np.ones(7, np.int64))
        np.testing.assert_allclose(found, class_gradient(x_t, float(schedule.alpha_bar(t))), rtol=1e-9, atol=1e-14)


def class_score(x_t, alpha_bar, std):
    """The score of the two classes together, N(+-m, std^2): (signal m tanh(signal m x / S) - x) / S."""
    S, mean = alpha_bar * std**2 + 1 - alpha_bar, math.sqrt(alpha_bar) * HALF_DISTANCE
    return (mean * np.tanh(mean * x_t / S) - x_t) / S


def check_autoguidance(scale=2.3, weak_std=0.6):
    """Guided by the model of a broadened mixture, the score is w of its own less w - 1 of the broadened one's."""
    schedule, x_t = linear_schedule(), np.linspace(-2, 2, 7).reshape(-1, 1, 1, 1)
    weak_mixture = GaussianMixture(TWO_CLASSES.means, weak_std)
    model, weak_model = (exact_model(mixture, schedule) for mixture in (TWO_CLASSES, weak_mixture))
    rule = autoguided(model, weak_model, scale, interval=(50, 600))
    for t in (10, 50, 300, 600, 800):
        alpha_bar, w = float(schedule.alpha_bar(t)), scale if 50 <= t <= 600 else 1
        score = w * class_score(x_t, alpha_bar, CLASS_STD) - (w - 1) * class_score(x_t, alpha_bar, weak_std)
        np.testing.assert_allclose(rule(x_t, np.full(7, t)), -math.sqrt(1 - alpha_bar) * score, rtol=1e-9, atol=1e-12)


def check_rescale(rescale=0.7, scale=3.0):
    """The guided prediction's standard deviation over an image is moved towards that of the conditional one."""
    mixture = GaussianMixture(np.array([[-0.5, 0.1, 0.3], [0.5, -0.4, 0.2]]), 0.3)
    schedule = linear_schedule()
    model, x_t = exact_model(mixture, schedule), np.linspace(-2, 2, 12).reshape(4, 1, 1, 3)
    t, cond = np.full(4, 300), np.ones(4, np.int64)
    plain, own = guided(model, NULL, scale)(x_t, t, cond=cond), model(x_t, t, cond)
    want = rescale * own.std((1, 2, 3)) + (1 - rescale) * plain.std((1, 2, 3))
    found = guided(model, NULL, scale, rescale)(x_t, t, cond=cond).std((1, 2, 3))
    np.testing.assert_allclose(found, want, rtol=1e-9)


# Likelihood

POINTS = GaussianMixture(np.array([[-0.3, 0.2], [0.4, 0.1], [0.0, -0.4]]), 0.15, weights=np.array([1, 2, 1]))


def lowest_sigma(schedule):
    return {"edm": 0.002, "flow": 0.001 / 0.999}.get(schedule.prediction_type) or float(
        np.sqrt(1 / schedule.alphas_cumprod[0] - 1)
    )


def log_density(mixture, x0, sigma):
    """That of x0 + sigma eps."""
    return GaussianMixture(mixture.means, np.sqrt(mixture.std**2 + sigma**2), weights=mixture.weights).log_density(x0)


def check_likelihood(schedule, steps=40):
    """Each point's to 0.01 bit per dimension, by the trace."""
    x0, _ = POINTS.sample(40, np.random.default_rng(0))
    found = log_likelihood(exact_model(POINTS, schedule), schedule, x0, steps=steps)
    error = (found - log_density(POINTS, x0, lowest_sigma(schedule))) / 2 / math.log(2)
    assert np.abs(error).max() < 0.01, np.abs(error).max()


def check_hutchinson(probes=4):
    """The mean over points is within three standard errors of the mean by the trace."""
    schedule, rng = EDM(), np.random.default_rng(1)
    x0, _ = POINTS.sample(300, rng)
    model = exact_model(POINTS, schedule)
    difference = log_likelihood(model, schedule, x0, steps=20, probes=probes, rng=rng)
    difference -= log_likelihood(model, schedule, x0, steps=20)
    assert abs(difference.mean()) < 3 * difference.std() / math.sqrt(300), difference.mean()
    assert 0 < difference.std() < 0.5


PIXELS = GaussianMixture(np.array([[-0.3], [0.4]]) * np.ones(16), 0.15)


def byte_images(n):
    """Samples of PIXELS rounded to bytes, and -log2 p per dimension of each. Few are clipped; 19 bytes are one std."""
    x0, _ = PIXELS.sample(n, np.random.default_rng(3))
    x0 = (np.rint(x0 * 127.5 + 127.5).clip(0, 255) - 127.5) / 127.5
    edges = (x0.reshape(n, 1, 16) - PIXELS.means)[..., None] + np.array([-1, 1]) / 255  # (n, K, D, 2)
    mass = np.diff(np.vectorize(math.erf)(edges / PIXELS.std / math.sqrt(2)))[..., 0] / 2
    return x0, -np.log2((mass.prod(2) * PIXELS.weights).sum(1)) / 16


def within_three_errors(difference, low, high):
    """Whether the mean lies in [low, high], or no more than three standard errors outside."""
    margin = 3 * difference.std() / math.sqrt(len(difference))
    assert margin < 0.1, margin
    assert low - margin < difference.mean() < high + margin, (difference.mean(), margin)


def check_ode_bits():
    """Within 0.01 bit of the bits of bytes, the dequantised ones being above them by less."""
    x0, truth = byte_images(100)
    schedule = linear_schedule()
    found = ode_bits_per_dim(exact_model(PIXELS, schedule), schedule, x0, np.random.default_rng(0), steps=20, probes=2)
    within_three_errors(found - truth, -0.01, 0.01)


def check_bound():
    """Never significantly below the truth, nor more than its gap of 1000 steps, 0.05 bit, above."""
    x0, truth = byte_images(300)
    schedule, sampler = linear_schedule(), Sampler("ddpm", clip=None, variance="fixed_large")
    model = exact_model(PIXELS, schedule)
    found = bits_per_dim(model, schedule, x0, np.random.default_rng(0), evaluations=100, sampler=sampler).total
    within_three_errors(found - truth, 0.0, 0.05)


# The learned variance: of Gaussian data p(x_{t-1} | x_t) is a Gaussian, and its variance is known

GAUSSIAN_PIXELS = GaussianMixture(np.full((1, 16), 0.1), 0.15)


def optimal_v(schedule):
    """v (T,) of Var[x_{t-1} | x_t] = beta tilde_t + (coefficient of x0)^2 Var[x0 | x_t]; at t = 0 of Var[x0 | x_0]."""
    beta, alpha_bar, s2 = schedule.betas, np.cumprod(1 - schedule.betas), 0.15**2
    before = np.concatenate([[1.0], alpha_bar[:-1]])
    beta_tilde = (1 - before) / (1 - alpha_bar) * beta
    x0_variance = s2 * (1 - alpha_bar) / (alpha_bar * s2 + 1 - alpha_bar)
    variance = beta_tilde + before * beta**2 / (1 - alpha_bar) ** 2 * x0_variance
    beta_tilde[0] = beta_tilde[1]
    return 2 * np.log(variance / beta_tilde) / np.log(beta / beta_tilde) - 1


def with_optimal_v(mixture, schedule):
    """The exact model with the optimal variance in a second half of its channels."""
    model, v = exact_model(mixture, schedule), optimal_v(schedule)

    def predict(x_t, t):
        return np.concatenate([model(x_t, t), np.broadcast_to(v[t].reshape(-1, 1, 1, 1), x_t.shape)], -1)

    return predict


def check_learned_variance():
    """With 40 steps the optimal variance makes the bound tight; both fixed ones are above it, on the same noise."""
    schedule = linear_schedule(40, 1e-4, 0.3)
    x0, _ = GAUSSIAN_PIXELS.sample(1000, np.random.default_rng(3))
    x0 = (np.rint(x0 * 127.5 + 127.5).clip(0, 255) - 127.5) / 127.5
    edges = (x0.reshape(-1, 16, 1) - 0.1 + np.array([-1, 1]) / 255) / 0.15 / math.sqrt(2)
    truth = -np.log2(np.diff(np.vectorize(math.erf)(edges))[..., 0] / 2).mean(1)
    found = {}
    for variance in ("learned_range", "fixed_small", "fixed_large"):
        model = (with_optimal_v if variance == "learned_range" else exact_model)(GAUSSIAN_PIXELS, schedule)
        sampler = Sampler("ddpm", clip=None, variance=variance)
        found[variance] = bits_per_dim(model, schedule, x0, np.random.default_rng(0), sampler=sampler).total
    within_three_errors(found["learned_range"] - truth, 0.0, 0.005)
    for variance in ("fixed_small", "fixed_large"):
        more = found[variance] - found["learned_range"]
        assert more.mean() > 3 * more.std() / math.sqrt(len(more)), (variance, more.mean())


def check_learned_loss():
    """The loss as a function of v alone is least at the optimal v."""
    schedule, backend, step = linear_schedule(40, 1e-4, 0.3), get_backend("numpy"), 0.3
    optimal = with_optimal_v(GAUSSIAN_PIXELS, schedule)
    rng = np.random.default_rng(0)
    x0, _ = GAUSSIAN_PIXELS.sample(1000, rng)
    for timestep in (1, 5, 30):
        times, eps = np.full(len(x0), timestep), rng.standard_normal(x0.shape)

        def loss(change, times=times, eps=eps):
            def model(x_t, t):
                prediction = optimal(x_t, t)
                prediction[..., 16:] += change
                return Tensor(prediction, backend)

            return float(training_loss(model, schedule, x0, times, eps).numpy())

        less, least, more = loss(-step), loss(0.0), loss(step)
        vertex = step / 2 * (less - more) / (less + more - 2 * least)  # of the parabola through the three
        assert less > least < more and abs(vertex) < (0.07 if timestep == 1 else 0.01), (timestep, vertex)


def check_importance_sampling():
    """t is drawn in proportion to the root of its mean squared loss, and the weights make any mean unbiased."""
    schedule, n = linear_schedule(4, 0.1, 0.4), 100_000
    history, sizes = loss_history(schedule), np.array([1.0, 2.0, 5.0, 12.0])
    for sign in (-0.6, 0.6) * 5:
        record_losses(history, np.arange(4), sizes * (1 + sign))  # of mean square 1.36 sizes^2
    t, weight = importance_sample(history, np.random.default_rng(0), n)
    p = 0.999 * sizes / sizes.sum() + 0.001 / 4
    np.testing.assert_allclose(np.bincount(t, minlength=4) / n, p, rtol=0, atol=4 * math.sqrt(0.25 / n))
    estimate = weight * np.array([3.0, 1.0, -2.0, 4.0])[t]  # of the mean of these, 1.5
    assert abs(estimate.mean() - 1.5) < 4 * estimate.std() / math.sqrt(n), estimate.mean()
