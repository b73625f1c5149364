"""Chapter 11's solutions against the library's guided models."""

import numpy as np
import pytest

from minidiff.diffusion import guidance
from minidiff.diffusion.exact import GaussianMixture, exact_model
from minidiff.diffusion.schedule import linear_schedule
from minidiff.learn.chapters.guidance import EXERCISES, classifier_guided, guided

MIXTURE = GaussianMixture(np.array([[-0.4, 0.1], [0.5, 0.0]]), std=0.3)
SCHEDULE = linear_schedule()
MODEL = exact_model(MIXTURE, SCHEDULE)
T = np.array([700, 700, 700])
LABEL = np.array([0, 1, 1])


@pytest.fixture
def x_t():
    return np.random.default_rng(0).standard_normal((3, 1, 1, 2))


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_guided_is_the_library_s(scale, x_t):
    expected = guidance.guided(MODEL, MIXTURE.null, scale)(x_t, T, cond=LABEL)
    assert np.allclose(guided(MODEL(x_t, T, LABEL), MODEL(x_t, T), scale), expected, rtol=1e-12, atol=1e-12)


def gradient_of(x_t, alpha_bar):
    return MIXTURE.score(x_t, alpha_bar, LABEL) - MIXTURE.score(x_t, alpha_bar)


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_classifier_guided_is_the_library_s(scale, x_t):
    alpha_bar = SCHEDULE.alphas_cumprod[T]
    gradient = gradient_of(x_t, alpha_bar)
    expected = guidance.classifier_guided(MODEL, SCHEDULE, lambda *_: gradient, scale)(x_t, T, cond=LABEL)
    answer = classifier_guided(MODEL(x_t, T), gradient, alpha_bar, scale)
    assert np.allclose(answer, expected, rtol=1e-12, atol=1e-12)


def test_with_scale_1_both_are_the_conditional_model(x_t):
    alpha_bar = SCHEDULE.alphas_cumprod[T]
    conditional = MODEL(x_t, T, LABEL)
    by_classifier = classifier_guided(MODEL(x_t, T), gradient_of(x_t, alpha_bar), alpha_bar, 1.0)
    assert np.allclose(guided(conditional, MODEL(x_t, T), 1.0), conditional, rtol=1e-12, atol=1e-12)
    assert np.allclose(by_classifier, conditional, rtol=1e-10, atol=1e-10)


def test_the_image_shows_a_density_that_sharpens():
    image = np.asarray(EXERCISES[0].image(guided))
    assert len(np.unique(image)) > 50
