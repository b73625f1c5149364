"""Guidance: the formulas, where it is not applied, and its effect on samples; exact_checks.py has the exact rules."""

import exact_checks as checks
import numpy as np
import pytest

from minidiff.diffusion.exact import exact_model
from minidiff.diffusion.guidance import autoguided, classifier_gradient, classifier_guided, guided
from minidiff.diffusion.reverse import sample
from minidiff.diffusion.schedule import linear_schedule
from minidiff.engine.backend import get_backend
from minidiff.engine.tensor import Tensor

NULL = 3
SHAPE = (4, 2, 2, 3)
MEANS = np.array([-0.5, 0.0, 0.5, 0.1], np.float32)  # of each class's images; the last is the null class


class Model:
    """Predicts its class's mean plus a quarter of x_t; records the calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, x_t, t, cond):
        self.calls.append((len(x_t), t.tolist(), cond.tolist()))
        return x_t * np.float32(0.25) + MEANS[cond].reshape(-1, 1, 1, 1)


@pytest.fixture
def x_t():
    return np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)


def predict(model, x_t, t=500):
    return model(x_t, np.full(len(x_t), t), cond=np.array([0, 1, 2, 0]))


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_the_formula_in_one_call(scale, x_t):
    model = Model()
    got = predict(guided(model, NULL, scale), x_t)
    p_cond, p_null = predict(Model(), x_t), x_t * np.float32(0.25) + MEANS[NULL]
    np.testing.assert_allclose(got, p_null + scale * (p_cond - p_null), rtol=0, atol=1e-6)  # of values below 4
    assert model.calls == [(8, [500] * 8, [0, 1, 2, 0] + [NULL] * 4)]


@pytest.mark.parametrize(
    ("settings", "t"), [((1.0,), 500), ((3.0, 0.0, (100, 400)), 99), ((3.0, 0.0, (100, 400)), 401)]
)
def test_without_guidance_the_conditional_prediction(settings, t, x_t):
    model = Model()
    np.testing.assert_array_equal(predict(guided(model, NULL, *settings), x_t, t), predict(Model(), x_t, t))
    assert [n for n, *_ in model.calls] == [4]


@pytest.mark.parametrize("t", [100, 400])
def test_guidance_within_the_interval(t, x_t):
    assert (
        np.abs(predict(guided(Model(), NULL, 3.0, interval=(100, 400)), x_t, t) - predict(Model(), x_t, t)).max() > 0.1
    )


def test_negative_class(x_t):
    got = predict(guided(Model(), NULL, 2.0, negative=1), x_t)
    own = predict(Model(), x_t)
    np.testing.assert_allclose(got, own + (own - x_t * np.float32(0.25) - MEANS[1]), rtol=0, atol=1e-6)


def test_rescaled_to_the_conditional_predictions_standard_deviation(x_t):
    """Lin et al. eq. 15 and 16."""

    def rescaled(rescale):
        return guided(lambda x, t, cond: Model()(x, t, cond) * (1 + cond.reshape(-1, 1, 1, 1)), NULL, 3.5, rescale)

    unrescaled = predict(rescaled(0), x_t)
    own = predict(lambda x, t, cond: Model()(x, t, cond) * (1 + cond.reshape(-1, 1, 1, 1)), x_t)
    axes = (1, 2, 3)
    full = predict(rescaled(1.0), x_t)
    np.testing.assert_allclose(full.std(axes), own.std(axes), rtol=1e-5)  # a handful of float32 roundings
    np.testing.assert_allclose(predict(rescaled(0.7), x_t), 0.7 * full + 0.3 * unrescaled, rtol=0, atol=1e-5)


def test_models_of_tensors_and_of_arrays(x_t):
    backend = get_backend("numpy")
    tensors = guided(lambda *a, **k: Tensor(Model()(*a, **k), backend), NULL, 3.0)
    np.testing.assert_array_equal(predict(tensors, x_t), predict(guided(Model(), NULL, 3.0), x_t))


def test_samples_exceed_the_class_mean_by_the_guidance_scale():
    """With a model that predicts x0 = its class's mean, samples are null + scale (mean - null)."""
    schedule = linear_schedule(prediction_type="sample")
    labels = np.array([0, 2])

    def model(x_t, t, cond):
        return np.broadcast_to(MEANS[cond].reshape(-1, 1, 1, 1), x_t.shape)

    *_, (_, x_0, _) = sample(
        guided(model, NULL, 1.5), schedule, (2, 4, 4, 1), np.random.default_rng(0), 10, cond=labels
    )
    np.testing.assert_allclose(x_0.mean((1, 2, 3)), [0.1 + 1.5 * -0.6, 0.1 + 1.5 * 0.4], rtol=0, atol=1e-5)


def gradient(x_t, t, labels):
    return 0.1 * x_t * (labels + 1).reshape(-1, 1, 1, 1)


RULES = {  # scale, rescale and interval -> the guided model, and the scale without effect
    "autoguided": (lambda model, *settings: autoguided(model, weak, *settings), 1.0),
    "classifier_guided": (
        lambda model, *settings: classifier_guided(model, linear_schedule(), gradient, *settings), 0.0
    ),
}  # fmt: skip


def weak(x_t, t, cond=None):
    return 0.5 * Model()(x_t, t, np.array([NULL]))


def unconditional(x_t, t):
    return Model()(x_t, t, np.array([1]))


def own(x_t, t=500):
    return unconditional(x_t, np.full(len(x_t), t))


@pytest.mark.parametrize("name", RULES)
def test_no_effect_outside_the_interval_or_by_the_scale(name, x_t):
    rule, without = RULES[name]
    model = unconditional if name == "classifier_guided" else lambda x_t, t, cond: unconditional(x_t, t)
    np.testing.assert_array_equal(predict(rule(model, without), x_t), own(x_t))
    for t, applied in ((99, False), (100, True), (400, True), (401, False)):
        found = predict(rule(model, 3.0, 0.0, (100, 400)), x_t, t)
        assert (np.abs(found - own(x_t)).max() > 0.1) == applied


@pytest.mark.parametrize("name", RULES)
def test_the_rescaled_standard_deviation(name, x_t):
    rule, _ = RULES[name]
    model = unconditional if name == "classifier_guided" else lambda x_t, t, cond: unconditional(x_t, t)
    plain, full = predict(rule(model, 3.0), x_t), predict(rule(model, 3.0, 1.0), x_t)
    np.testing.assert_allclose(full.std((1, 2, 3)), own(x_t).std((1, 2, 3)), rtol=1e-5)
    assert np.abs(plain.std((1, 2, 3)) - own(x_t).std((1, 2, 3))).max() > 0.1


@pytest.mark.parametrize("t", [200, 500])
@pytest.mark.parametrize("rescale", [0.0, 0.5])
@pytest.mark.parametrize("name", ["guided", *RULES])
def test_a_learned_variance_is_not_guided(name, rescale, t, x_t):
    """The prediction is guided as without it; v stays the model's, in the interval (t = 200) and outside of it."""

    def conditional(x_t, t, cond=None):
        return Model()(x_t, t, np.array([1]) if cond is None else cond)

    def with_variance(model):
        def both(x_t, t, cond=None):
            v = np.full_like(x_t, 7) if model is weak else np.cos(3 * conditional(x_t, t, cond))
            return np.concatenate([model(x_t, t, cond), v], -1)

        return both

    settings = (3.0, rescale, (100, 400))
    rules = {
        "guided": lambda wrapped: guided(wrapped(conditional), NULL, *settings),
        "autoguided": lambda wrapped: autoguided(wrapped(conditional), wrapped(weak), *settings),
        "classifier_guided": lambda wrapped: classifier_guided(
            wrapped(conditional), linear_schedule(), gradient, *settings
        ),
    }
    found, plain = (predict(rules[name](wrapped), x_t, t) for wrapped in (with_variance, lambda model: model))
    own = conditional(x_t, np.full(4, t)) if name == "classifier_guided" else predict(conditional, x_t, t)
    np.testing.assert_array_equal(found[..., :3], plain)
    np.testing.assert_array_equal(found[..., 3:], np.cos(3 * own))


def test_autoguidance_of_an_unconditional_model(x_t):
    t = np.full(4, 500)
    found = autoguided(unconditional, weak, 2.0)(x_t, t)
    np.testing.assert_allclose(found, 2 * unconditional(x_t, t) - weak(x_t, t), rtol=0, atol=1e-6)


def test_a_label_that_the_classifier_does_not_have():
    x_t, t = np.zeros((1, 1, 1, 1)), np.array([5])
    with pytest.raises(IndexError, match="labels 2..2 for 2 classes"):
        classifier_gradient(checks.LogisticClassifier(), linear_schedule())(x_t, t, np.array([2]))


def test_samples_by_the_exact_classifier_are_those_of_the_conditional_model():
    """The same trajectories, to a hundred roundings: within the sampling loop, which records no other operation."""
    schedule, labels = linear_schedule(prediction_type="v_prediction"), np.array([0, 1, 0, 1])
    model = exact_model(checks.TWO_CLASSES, schedule)
    x_T = np.linspace(-2, 2, 4).reshape(4, 1, 1, 1)

    def sampled(model):
        *_, (_, x_0, _) = sample(model, schedule, x_T.shape, None, 50, cond=labels, x_T=x_T)
        return x_0

    gradient = classifier_gradient(checks.LogisticClassifier(), schedule)
    by_classifier = classifier_guided(model, schedule, gradient, 1.0)
    np.testing.assert_allclose(sampled(by_classifier), sampled(model), rtol=1e-9)
