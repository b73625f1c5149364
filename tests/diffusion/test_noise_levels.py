"""The noise levels of sampling: timesteps in three spacings, and sigmas between them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidiff.diffusion.noise_levels import karras, noise_levels, sigmas_of, timesteps
from minidiff.diffusion.sampler import SAMPLERS, SPACINGS, Sampler
from minidiff.diffusion.schedule import cosine_schedule, linear_schedule, rescale_zero_terminal_snr
from minidiff.errors import MinidiffError

LINEAR = linear_schedule()


@given(T=st.integers(1, 2000), spacing=st.sampled_from(SPACINGS), data=st.data())
def test_timesteps_fall_and_lie_in_the_schedule(T, spacing, data):
    steps = data.draw(st.integers(1, T))
    ts = timesteps(T, steps, spacing)
    assert len(ts) == steps and ts.dtype == np.int64
    assert np.all(np.diff(ts) < 0) and 0 <= ts[-1] and ts[0] < T
    gaps = -np.diff(ts)
    assert steps <= 2 or gaps.max() - gaps.min() <= 1  # the mean gap, rounded down or up
    if spacing != "leading":
        assert ts[0] == T - 1
    if spacing != "trailing" and steps > 1:
        assert ts[-1] == 0


def test_the_timesteps_of_table_2():
    """Lin et al. 2024, table 2: a thousand steps in ten."""
    assert timesteps(1000, 10, "leading").tolist() == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert timesteps(1000, 10, "trailing").tolist() == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert timesteps(1000, 10, "linspace").tolist() == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert timesteps(1000, 4, "leading", 1).tolist() == [751, 501, 251, 1]


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, "10", None])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_an_invalid_number_of_steps_is_refused(steps, spacing):
    with pytest.raises(MinidiffError, match="steps must be an integer from 1 to the schedule's 1000"):
        timesteps(1000, steps, spacing)


def test_an_offset_out_of_the_schedule_is_refused():
    with pytest.raises(MinidiffError, match="steps_offset 1 exceeds the schedule's 1000 steps"):
        timesteps(1000, 1000, "leading", 1)


def test_an_unknown_spacing_is_refused():
    with pytest.raises(MinidiffError, match="spacing 'even' is unknown: use one of trailing, leading, linspace"):
        timesteps(1000, 10, "even")


@pytest.mark.parametrize("steps", [0, 1000])
def test_dpm_solver_needs_a_timestep_more_than_steps(steps):
    with pytest.raises(MinidiffError, match="steps must be an integer from 1 to 999 for dpmpp_2m"):
        noise_levels(LINEAR, steps, Sampler("dpmpp_2m", "linspace"))


@pytest.mark.parametrize("schedule", [LINEAR, cosine_schedule()])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_each_step_starts_where_the_last_one_ended(name, spacing, schedule):
    levels = noise_levels(schedule, 9, Sampler(name, spacing))
    sampler_steps = list(levels.sampler_steps())
    assert [step.i for step in sampler_steps] == list(range(9))[::-1]
    assert [step.t for step in sampler_steps] == levels.ts.tolist()
    assert sampler_steps[-1].t_prev == -1 and sampler_steps[-1].alpha_bar_prev == 1
    for step, following in zip(sampler_steps, sampler_steps[1:], strict=False):
        assert (step.t_prev, step.alpha_bar_prev) == (following.t, following.alpha_bar)
    assert all(step.alpha_bar < step.alpha_bar_prev for step in sampler_steps)
    # where a level lies at a whole timestep it is the schedule's; cumprod and its inverse cost a few roundings
    for step in sampler_steps:
        if step.t == round(step.t):
            np.testing.assert_allclose(step.alpha_bar, schedule.alphas_cumprod[round(step.t)], rtol=1e-9)


def test_without_clean_end_the_last_level_is_the_schedules_first():
    levels = noise_levels(LINEAR, 5, Sampler("ddim", clean_end=False))
    *_, last = levels.sampler_steps()
    assert last.alpha_bar_prev == LINEAR.alphas_cumprod[0] < 1


def test_karras_levels():
    """Karras et al. 2022, eq. 5: evenly spaced seventh roots, from sigma_max to sigma_min."""
    sigmas = karras(80.0, 0.002, 18)
    np.testing.assert_allclose(sigmas[[0, -1]], [80, 0.002], rtol=1e-12)
    np.testing.assert_allclose(np.diff(np.diff(sigmas ** (1 / 7))), 0, atol=1e-14)
    levels = noise_levels(LINEAR, 18, Sampler("euler", "linspace", karras=True))
    alpha_bar = levels.schedule.alphas_cumprod[::-1]
    np.testing.assert_allclose(np.sqrt((1 - alpha_bar) / alpha_bar), karras(*sigmas_of(LINEAR)[[-1, 0]], 18), rtol=1e-9)
    # and t is where the schedule has that sigma
    sigma = np.exp(np.interp(levels.ts, np.arange(1000), np.log(sigmas_of(LINEAR))))
    np.testing.assert_allclose(sigma, karras(*sigmas_of(LINEAR)[[-1, 0]], 18), rtol=1e-9)


def test_sigma_stays_finite_at_zero_terminal_snr():
    schedule = rescale_zero_terminal_snr(linear_schedule(prediction_type="v_prediction"))
    levels = noise_levels(schedule, 3, Sampler("euler"))
    assert np.sqrt(1 / levels.schedule.alphas_cumprod[-1] - 1) == pytest.approx(4096, rel=1e-6)


def test_the_start_is_as_noisy_as_the_first_level():
    assert noise_levels(LINEAR, 5, Sampler("euler", "leading")).start == 1
    assert noise_levels(LINEAR, 5, Sampler("ddim")).start == 1
    assert noise_levels(LINEAR, 5, Sampler("euler")).start == pytest.approx(np.sqrt(1 - LINEAR.alphas_cumprod[-1]))
