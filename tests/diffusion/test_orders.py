"""Samplers with the exact model, in float64: orders of convergence, and samples of the exact distribution."""

import exact_checks as checks
import numpy as np
import pytest

from minidiff.diffusion.sampler import SAMPLERS, Sampler

pytestmark = pytest.mark.slow  # all together

DIFFUSION = [name for name in SAMPLERS if name != "consistency"]  # which is for consistency models
FIXED_LARGE = Sampler("ddpm", clip=None, variance="fixed_large")
SECOND_ORDER = [Sampler("dpmpp_2m_sde", clip=None), Sampler("dpmpp_sde", clip=None)]
CHURN = [Sampler(name, clip=None, churn=20.0) for name in checks.CHURN]
ANCESTRAL = [Sampler("ddpm", clip=None), Sampler("euler_ancestral", clip=None), Sampler("ddim", eta=1.0, clip=None)]
STOCHASTIC = [*ANCESTRAL, FIXED_LARGE, Sampler("ddim", eta=0.5, clip=None)]


def name_of(sampler):
    return f"{sampler.name}-{sampler.eta:g}-{sampler.variance}-{sampler.churn:g}"


@pytest.mark.parametrize("name", checks.ORDERS)
def test_order_of_a_deterministic_sampler(name):
    checks.check_order(name)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction", "edm", "flow"])
@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "unipc"])
def test_order_with_other_prediction_types(name, prediction_type):
    checks.check_order(name, prediction_type)


def test_pndm_is_more_accurate_than_ddim():
    checks.check_pndm()


@pytest.mark.parametrize("sampler", [*ANCESTRAL, FIXED_LARGE], ids=name_of)
def test_weak_order_of_an_ancestral_sampler(sampler):
    checks.check_ancestral(sampler)


@pytest.mark.parametrize("sampler", SECOND_ORDER, ids=name_of)
def test_weak_order_of_sde_dpm_solver(sampler):
    checks.check_ancestral(sampler, 2)


def test_weak_order_of_the_euler_maruyama_sampler():
    checks.check_euler_maruyama(checks.sampler_run(Sampler("euler_maruyama", clip=None)))


@pytest.mark.parametrize("interval", [(0.0, np.inf), (0.2, 4.0)])
@pytest.mark.parametrize("name", checks.CHURN)
def test_weak_order_with_churn(name, interval):
    checks.check_churn(name, interval)


def test_weak_order_of_ddim_with_half_the_noise():
    checks.check_eta()


@pytest.mark.parametrize("sampler", [*(Sampler(n, clip=None) for n in DIFFUSION), *STOCHASTIC[2:], *CHURN], ids=name_of)
def test_samples_are_of_the_exact_distribution(sampler):
    checks.check_samples(sampler)


def test_power_of_the_two_sample_test():
    """It rejects a shift by a fifth of a component's standard deviation, and equal distributions once in a thousand."""
    rejected = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        (a, _), (b, _) = (checks.MIXTURE.sample(checks.N_SAMPLES, rng) for _ in range(2))
        a, b = a.ravel(), b.ravel()
        rejected.append(
            (checks.ks_distance(a, b) > checks.REJECTED, checks.ks_distance(a, b + checks.SHIFT) > checks.REJECTED)
        )
    assert rejected == [(False, True)] * 20
