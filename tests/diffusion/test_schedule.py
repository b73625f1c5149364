"""Beta schedules: the formulas and the tables."""

import math

import numpy as np
import pytest

from minidiff.diffusion import schedule as s
from minidiff.errors import MinidiffError

ALL = [s.linear_schedule, s.scaled_linear_schedule, s.cosine_schedule, s.sigmoid_schedule]


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("T", [1, 2, 10, 1000])
def test_tables_follow_from_the_betas(make, T):
    schedule = make(T)
    assert len(schedule) == T
    alpha_bar = [math.prod(1 - beta for beta in schedule.betas[: t + 1]) for t in range(T)]
    # Two orders of at most 1000 products, each rounded to 1.1e-16: 1000 * 2.2e-16.
    np.testing.assert_allclose(schedule.alphas_cumprod, alpha_bar, rtol=2.2e-13)
    np.testing.assert_array_equal(schedule.alphas, 1 - schedule.betas)
    np.testing.assert_array_equal(schedule.alphas_cumprod_prev, [1, *schedule.alphas_cumprod[:-1]])
    assert schedule.posterior_variance[0] == 0
    assert np.all(schedule.posterior_variance <= schedule.betas)


@pytest.mark.parametrize("table", ["betas", "alphas", "alphas_cumprod", "alphas_cumprod_prev", "posterior_variance"])
def test_tables_are_float64_and_cannot_be_written_to(table):
    values = getattr(s.linear_schedule(10), table)
    assert values.dtype == np.float64 and values.shape == (10,)
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 0.5


def test_the_betas_given_stay_writable_and_apart():
    betas = np.full(5, 0.1)
    schedule = s.Schedule(betas)
    betas[0] = 0.9
    assert schedule.betas[0] == 0.1


def test_linear_is_ddpms():
    schedule = s.linear_schedule()
    assert (schedule.betas[0], schedule.betas[-1]) == (1e-4, 0.02)
    np.testing.assert_allclose(np.diff(schedule.betas), 0.0199 / 999, rtol=1e-9)  # 1e-16 / 2e-5 is 5e-12
    assert 4.0e-5 < schedule.alphas_cumprod[-1] < 4.1e-5


def test_scaled_linear_is_linear_in_the_root():
    roots = np.sqrt(s.scaled_linear_schedule(100, 0.0004, 0.01).betas)
    np.testing.assert_allclose(roots, [0.02 + 0.08 * t / 99 for t in range(100)], rtol=1e-12)


def test_cosine_is_equation_17_until_the_clip():
    def f(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    schedule = s.cosine_schedule(1000)
    alpha_bar = [f(t + 1) / f(0) for t in range(999)]
    np.testing.assert_allclose(schedule.alphas_cumprod[:-1], alpha_bar, rtol=1e-9)  # the last cos is 2e-6 +- 1e-16
    assert schedule.betas[-1] == 0.999 and schedule.betas[:-1].max() < 0.999


def test_sigmoid_is_geodiffs():
    betas = s.sigmoid_schedule(101, 0.1, 0.3).betas
    assert betas[50] == pytest.approx(0.2, rel=1e-12)
    assert betas[0] == pytest.approx(0.1 + 0.2 / (1 + math.exp(6)), rel=1e-12)
    np.testing.assert_allclose(betas + betas[::-1], 0.4, rtol=1e-12)


@pytest.mark.parametrize("make", ALL)
def test_zero_terminal_snr_keeps_the_first_alpha_bar_and_zeroes_the_last(make):
    before = make(100, prediction_type="v_prediction")
    after = s.rescale_zero_terminal_snr(before)
    assert after.alphas_cumprod[-1] == 0 and s.snr(after, 99) == 0
    assert after.alphas_cumprod[0] == pytest.approx(before.alphas_cumprod[0], rel=1e-12)
    assert after.prediction_type == "v_prediction"
    # The square roots are an affine image of what they were.
    old, new = np.sqrt(before.alphas_cumprod), np.sqrt(after.alphas_cumprod)
    np.testing.assert_allclose((old - old[-1]) / (old[0] - old[-1]), new / new[0], atol=1e-12)


def test_zero_terminal_snr_refuses_epsilon_and_edm():
    with pytest.raises(MinidiffError, match="'epsilon'.*'v_prediction'"):
        s.rescale_zero_terminal_snr(s.linear_schedule())
    with pytest.raises(MinidiffError, match="'epsilon'"):
        s.Schedule(np.array([0.1, 1.0]))
    with pytest.raises(MinidiffError, match="'edm'"):
        s.Schedule(np.array([0.1, 1.0]), "edm")
    with pytest.raises(MinidiffError, match="1 step"):
        s.rescale_zero_terminal_snr(s.linear_schedule(1, prediction_type="sample"))


def test_respace_keeps_alpha_bar_of_its_timesteps():
    schedule = s.cosine_schedule(1000, "v_prediction")
    short = s.respace(schedule, np.array([999, 500, 20, 0]))
    # 1 - beta is known to 1.1e-16 absolute, and is 1e-9 at the last.
    np.testing.assert_allclose(short.alphas_cumprod, schedule.alphas_cumprod[[0, 20, 500, 999]], rtol=1e-6)
    np.testing.assert_allclose(short.betas[1], 1 - np.prod(schedule.alphas[1:21]), rtol=1e-12)
    assert short.prediction_type == "v_prediction" and short.name == "trained"
    with pytest.raises(MinidiffError, match="betas"):
        s.respace(schedule, np.array([5, 10]))


def test_snr_of_ints_and_arrays():
    schedule = s.Schedule(np.array([0.2, 0.5]))
    assert s.snr(schedule, 0) == pytest.approx(4)
    np.testing.assert_allclose(s.snr(schedule, np.array([[1, 0]])), [[2 / 3, 4]])


@pytest.mark.parametrize("t", [-1, 10, np.array([0, 10]), np.array([3, -1]), 0.5, np.array([1.0]), True])
def test_a_t_out_of_range_is_refused(t):
    with pytest.raises(MinidiffError, match="t must be integers from 0 to 9, not ") as caught:
        s.snr(s.linear_schedule(10), t)
    assert "3" not in str(caught.value)  # which is in the range


@pytest.mark.parametrize("T", [0, -1, 1.5, True, "1000", None, math.nan, 10**12, 10**400])
@pytest.mark.parametrize("make", ALL)
def test_an_invalid_number_of_timesteps_is_refused(make, T):
    with pytest.raises(MinidiffError, match="num_train_timesteps"):
        make(T)


@pytest.mark.parametrize("beta", [0, 1, -0.1, math.nan, math.inf, "0.1", None, True, 10**400])
@pytest.mark.parametrize("make", [s.linear_schedule, s.scaled_linear_schedule, s.sigmoid_schedule])
def test_an_invalid_beta_is_refused(make, beta):
    with pytest.raises(MinidiffError, match="beta_start and beta_end"):
        make(10, beta, 0.02)
    with pytest.raises(MinidiffError, match="beta_start and beta_end"):
        make(10, 1e-4, beta)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([], "shape"),
        (0.1, "shape"),
        ([[0.1]], "shape"),
        ([0.1, 0.0], "between 0 and 1"),
        ([0.1, -0.1], "between 0 and 1"),
        ([0.1, 1.1], "between 0 and 1"),
        ([0.1, math.nan], "between 0 and 1"),
        ([math.inf], "between 0 and 1"),
        ([0.5, 1.0, 0.5], "does not fall at t = 2"),  # no signal left to lose
        ([0.5, 1e-20], "does not fall at t = 1"),
        ([0.99] * 200, "does not fall at t = 16"),  # 0.01^162 is below the smallest float64
    ],
)
def test_invalid_betas_are_refused(betas, message):
    with pytest.raises(MinidiffError, match=message):
        s.Schedule(np.array(betas), "sample")


@pytest.mark.parametrize("prediction_type", ["eps", "", None, ["epsilon"], {}])
def test_an_unknown_prediction_type_is_refused(prediction_type):
    with pytest.raises(MinidiffError, match="prediction_type .* epsilon, sample, v_prediction"):
        s.linear_schedule(10, prediction_type=prediction_type)
