"""The solutions of chapter 14 against what is counted in arrays, and a step that is changed and summed again."""

import numpy as np
import pytest
from minidiff_kernels.reference.conv import conv2d

from minidiff.learn.chapters.kernels import roofline


@pytest.mark.parametrize("kernel", [1, 3])
def test_intensity_is_that_of_the_arrays(kernel):
    x, w = np.ones((2, 5, 6, 3), np.float32), np.ones((4, kernel, kernel, 3), np.float32)
    y = conv2d(x, w, pad=(kernel // 2,) * 4)
    expected = 2 * y.size * w[0].size / (x.nbytes + w.nbytes + y.nbytes)
    assert roofline.arithmetic_intensity(x.shape, w.shape) == pytest.approx(expected, rel=1e-12)


def test_speedup_is_that_of_the_step_with_one_operation_at_its_bound():
    flop, moved, seconds = np.array([8e9, 1e6]), np.array([1e8, 4e8]), np.array([0.2, 0.1])
    bound, speedup = roofline.bound_and_speedup(flop, moved, seconds, 100e9, 10e9)
    np.testing.assert_allclose(bound, [0.08, 0.04])  # 8e9 / 100e9 > 1e8 / 10e9; 4e8 / 10e9 > 1e6 / 100e9
    np.testing.assert_allclose(speedup, [0.3 / 0.18, 0.3 / 0.24])
