"""Prediction targets, the loss and guidance against the exact model."""

import exact_checks as checks
import numpy as np
import pytest

from minidiff.diffusion.exact import exact_model
from minidiff.diffusion.guidance import guided
from minidiff.diffusion.schedule import linear_schedule

by_prediction_type = pytest.mark.parametrize("prediction_type", checks.PREDICTION_TYPES)


@by_prediction_type
def test_target_and_its_inverse(prediction_type):
    checks.check_target(prediction_type)


@by_prediction_type
def test_loss_is_least_at_the_exact_model(prediction_type):
    checks.check_minimiser(prediction_type)


@by_prediction_type
def test_min_snr_weight(prediction_type):
    checks.check_min_snr(prediction_type)


def test_guidance_adds_the_gradient_of_the_class():
    checks.check_guidance()


def test_rescaled_guidance():
    checks.check_rescale()


@by_prediction_type
def test_classifier_guidance(prediction_type):
    checks.check_classifier_guidance(prediction_type)


def test_the_classifier_s_gradient():
    checks.check_classifier_gradient()


def test_autoguidance():
    checks.check_autoguidance()


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_guidance_is_the_same_for_every_prediction_type(prediction_type):
    """It is linear, and x0 and v are linear in eps: the guided x0_hat of each is that of epsilon."""
    x_t, t = np.linspace(-2, 2, 7).reshape(-1, 1, 1, 1), np.full(7, 300)
    labels, x0_hat = np.ones(7, np.int64), []
    for kind in ("epsilon", prediction_type):
        schedule = linear_schedule(prediction_type=kind)
        prediction = guided(exact_model(checks.TWO_CLASSES, schedule), checks.NULL, 2.5)(x_t, t, cond=labels)
        x0_hat.append(checks.x0_and_eps(schedule, prediction, x_t, t)[0])
    np.testing.assert_allclose(x0_hat[1], x0_hat[0], rtol=1e-9, atol=1e-12)


def test_score_of_a_class_is_that_of_all_plus_the_classifiers():
    """grad log p(x_t | c) = grad log p(x_t) + grad log p(c | x_t), with the gradient by central differences."""
    x_t, alpha_bar, h = np.linspace(-2, 2, 7).reshape(-1, 1, 1, 1), 0.4, 1e-5
    mixture = checks.TWO_CLASSES
    for label in (0, 1):
        above, below = (np.log(mixture.class_probabilities(x, alpha_bar)[:, label]) for x in (x_t + h, x_t - h))
        gradient = ((above - below) / (2 * h)).reshape(x_t.shape)
        difference = mixture.score(x_t, alpha_bar, np.full(7, label)) - mixture.score(x_t, alpha_bar)
        np.testing.assert_allclose(difference, gradient, rtol=1e-7, atol=1e-9)
