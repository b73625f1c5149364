"""The probability flow's likelihood, Hutchinson's estimate and the bound, where the truth is known."""

import exact_checks as checks
import numpy as np
import pytest
from small_runs import refused

import minidiff as md
from minidiff.diffusion.exact import exact_model
from minidiff.diffusion.likelihood import log_likelihood, ode_bits_per_dim

pytestmark = pytest.mark.slow  # all together

SCHEDULES = [
    md.linear_schedule(), md.linear_schedule(prediction_type="sample"), md.cosine_schedule(1000, "v_prediction"),
    md.EDM(), md.Flow(),
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.prediction_type)
def test_likelihood_of_a_mixture_by_the_trace(schedule):
    checks.check_likelihood(schedule)


def test_hutchinsons_estimate_is_unbiased():
    checks.check_hutchinson()


def test_bits_of_bytes():
    checks.check_ode_bits()


def test_bound():
    checks.check_bound()


def test_runge_kutta_converges_with_order_4():
    """Away from the truth by the prior, so against many steps."""
    x0, _ = checks.POINTS.sample(20, np.random.default_rng(0))
    schedule = md.EDM(0.05, 20.0)
    model = exact_model(checks.POINTS, schedule)
    *few, many = (log_likelihood(model, schedule, x0, steps=n) for n in (16, 32, 64, 128))
    errors = [np.abs(found - many).max() for found in few]
    assert abs(checks.slope((16, 32, 64), errors) - 4) < 0.4, errors


def test_likelihood_of_a_class():
    schedule, mixture = md.EDM(), checks.TWO_CLASSES
    x0, labels = mixture.sample(30, np.random.default_rng(0))
    found = log_likelihood(exact_model(mixture, schedule), schedule, x0, labels, steps=40)
    np.testing.assert_allclose(found / np.log(2), mixture.log_density(x0, 1.0, labels) / np.log(2), atol=0.02)


def test_a_model_of_float32_tensors():
    """Central differences of float32 leave four digits: within 0.01 bit of float64."""
    schedule, backend = md.linear_schedule(), md.get_backend("numpy")
    x0, _ = checks.POINTS.sample(10, np.random.default_rng(0))
    exact = exact_model(checks.POINTS, schedule)

    def model(x_t, t):
        assert x_t.dtype == np.float32
        return md.Tensor(exact(x_t, t), backend)

    wide, narrow = (log_likelihood(m, schedule, x, steps=20) for m, x in ((exact, x0), (model, x0.astype(np.float32))))
    np.testing.assert_allclose(narrow, wide, rtol=0, atol=0.01 * 2 * np.log(2))


def test_bits_are_of_dequantised_bytes():
    """The same rng gives the same noise and probes; without noise of the bytes it is the density's."""
    schedule, (x0, _) = md.linear_schedule(), checks.byte_images(3)
    model = exact_model(checks.PIXELS, schedule)

    class Half:
        """Draws the middle of every byte."""

        def random(self, shape):
            return np.full(shape, 0.5)

    bits = ode_bits_per_dim(model, schedule, x0, Half(), steps=3, probes=None)
    np.testing.assert_allclose(
        bits, np.log2(127.5) - log_likelihood(model, schedule, x0, steps=3) / 16 / np.log(2), rtol=1e-12
    )


def test_invalid_arguments_are_refused():
    schedule, x0 = md.EDM(), np.zeros((1, 1, 1, 2))
    model = exact_model(checks.POINTS, schedule)
    refused(lambda: log_likelihood(model, schedule, x0, steps=0), match="steps = 0")
    refused(lambda: log_likelihood(model, schedule, x0, probes=1), match="an rng for probes")
    refused(lambda: log_likelihood(model, schedule, x0, probes=0, rng=np.random.default_rng()), match="probes = 0")
