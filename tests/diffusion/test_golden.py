"""The expected values of diffusers' own tests of its schedulers, without torch.

The model is x t / (t + 1), x_T is a ramp, and the noise is torch's of seed 0. The expected values are the sum of the
absolute values of the last x_t, to 0.01, and their mean, to 0.001.
"""

import numpy as np
import pytest

from minidiff.diffusion.reverse import sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import linear_schedule
from minidiff.engine.torch_generator import torch_generator

SHAPE = (4, 8, 8, 3)


def ramp():
    """0 ... 1 over (C, H, W, N), then turned to (N, H, W, C)."""
    N, H, W, C = SHAPE
    values = np.arange(N * H * W * C, dtype=np.float32).reshape(C, H, W, N) / np.float32(N * H * W * C)
    return np.ascontiguousarray(values.transpose(3, 1, 2, 0))


def model(x_t, t):
    return x_t * (t / (t + 1)).astype(np.float32).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("sampler", "steps", "prediction_type", "beta_start", "total", "mean"),
    [
        (Sampler("ddpm", "leading"), 1000, "epsilon", 1e-4, 258.9606, 0.3372),
        (Sampler("ddpm", "leading"), 1000, "v_prediction", 1e-4, 202.0296, 0.2631),
        (Sampler("ddim", "leading"), 10, "epsilon", 1e-4, 172.0067, 0.223967),
        (Sampler("ddim", "leading"), 10, "v_prediction", 1e-4, 52.5302, 0.0684),
        (Sampler("ddim", "leading"), 10, "epsilon", 0.01, 149.8295, 0.1951),
        (Sampler("ddim", "leading", clean_end=False), 10, "epsilon", 0.01, 149.0784, 0.1941),
    ],
)
def test_golden_sums(sampler, steps, prediction_type, beta_start, total, mean):
    schedule = linear_schedule(1000, beta_start, 0.02, prediction_type)
    *_, (t, x_0, _) = sample(model, schedule, SHAPE, torch_generator(0), steps, sampler, x_T=ramp())
    assert t == -1
    assert np.abs(x_0).sum() == pytest.approx(total, abs=1e-2)
    assert np.abs(x_0).mean() == pytest.approx(mean, abs=1e-3)
