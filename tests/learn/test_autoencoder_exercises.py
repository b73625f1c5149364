"""Chapter 8's solutions against the library's own functions."""

import numpy as np
import pytest

from minidiff.engine import gaussian
from minidiff.engine.backend import get_backend
from minidiff.engine.tensor import Tensor
from minidiff.learn.chapters.autoencoder import EXERCISES, kl_divergence, reparameterised_sample

SAMPLE, KL = EXERCISES


def tensors(*arrays):
    return [Tensor(a.astype(np.float32), get_backend("numpy")) for a in arrays]


def test_the_sample_is_the_engine_s():
    for mean, log_variance, eps in SAMPLE.inputs(np.random.default_rng(0)):
        expected = gaussian.reparameterised_sample(*tensors(mean, log_variance), eps.astype(np.float32)).numpy()
        # float32 against float64: some roundings of values of at most about 8
        assert np.abs(reparameterised_sample(mean, log_variance, eps) - expected).max() < 8 * 4 * 2**-24


def test_the_divergence_is_the_engine_s():
    for mean, log_variance in KL.inputs(np.random.default_rng(0)):
        expected = float(gaussian.kl_divergence(*tensors(mean, log_variance)).numpy())
        assert kl_divergence(mean, log_variance) == pytest.approx(expected, rel=1e-6)


def test_the_divergence_is_the_general_one_s_and_0_at_the_standard_normal_distribution():
    for mean, log_variance in KL.inputs(np.random.default_rng(1)):
        general = gaussian.gaussian_kl(mean, np.exp(log_variance), 0, 1)
        assert kl_divergence(mean, log_variance) == pytest.approx(general.mean(), rel=1e-12)
    assert kl_divergence(np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2, 3))) == 0
