"""The solutions of chapter 1 are the library's own functions."""

import numpy as np
import pytest

from minidiff.diffusion import forward
from minidiff.diffusion.schedule import cosine_schedule, linear_schedule, snr
from minidiff.learn.chapters.forward_diffusion import EXERCISES, q_sample, timestep_of_snr

SCHEDULES = [linear_schedule(), cosine_schedule()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
def test_q_sample_is_the_librarys(schedule):
    rng = np.random.default_rng(0)
    x0, eps = rng.standard_normal((2, 4, 6, 5, 3))
    t = np.array([0, 1, 500, 999])
    np.testing.assert_array_equal(q_sample(x0, t, eps, schedule.alphas_cumprod), forward.q_sample(schedule, x0, t, eps))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
@pytest.mark.parametrize("ratio", [20.0, 1.0, 0.01])
def test_the_ratio_crosses_at_the_timestep(schedule, ratio):
    t = timestep_of_snr(schedule.alphas_cumprod, ratio)
    assert snr(schedule, t) <= ratio < snr(schedule, t - 1)


def test_the_ratio_may_be_reached_exactly_or_at_once():
    assert timestep_of_snr(np.array([0.8, 0.5, 0.1]), 1.0) == 1
    assert timestep_of_snr(np.array([0.4, 0.1]), 1.0) == 0


def test_the_image_shows_ten_noise_levels_of_the_readers_function():
    image = EXERCISES[0].image
    assert image is not None
    right, wrong = image(q_sample), image(lambda x0, t, eps, alphas_cumprod: x0)
    assert right.width > 9 * right.height / 2 and right.size == wrong.size
    pixels = np.asarray(right).astype(int)
    tile = pixels.shape[1] // 10
    roughness = [np.abs(np.diff(pixels[20:90, i * tile + 20 : i * tile + 90], axis=1)).mean() for i in range(10)]
    assert roughness == sorted(roughness), "each is noisier than the one before"
