"""Profiles of the moving averages and their post-hoc combination, against averages of a recorded training.

Mutants: one deliberate mistake each in the two functions, after which the checks fail.
"""

import inspect
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from minidiff.engine import ema
from minidiff.engine.backend import get_backend
from minidiff.engine.nn import Parameter
from minidiff.engine.optim import AdamW, half_life

STEPS, KEPT = 1200, (300, 600, 900, 1200)
STORED, WANTED = (20.0, 70.0), (15.0, 40.0, 60.0)  # half-lives
# float64 rounds once a step: STEPS x 2^-53 of weights below 10, and lstsq amplifies it by 1 / RCOND at most
ROUNDING = 10 * STEPS * 2**-53 / ema.RCOND


def recorded():
    """(n + 1, P) weights of a training in float64, step after step, and its averages by half-life and step."""
    rng = np.random.default_rng(0)
    parameter = Parameter(rng.standard_normal(30), get_backend("numpy"))
    optimizer = AdamW([parameter], lr=0.05, ema=[half_life(steps) for steps in STORED + WANTED])
    weights, averages = [optimizer.p.copy()], {}
    for step in range(1, STEPS + 1):
        optimizer.g[...] = optimizer.p + 3 * rng.standard_normal(30)
        optimizer.step()
        weights.append(optimizer.p.copy())
        for steps, average in zip(STORED + WANTED, optimizer.emas, strict=True):
            averages[steps, step] = average.copy()
    return np.array(weights), averages


RECORDED = recorded()


def check_profiles(functions: ModuleType | SimpleNamespace) -> None:
    """The weights with a profile's coefficients are the optimiser's average, at every kept step and half-life."""
    weights, averages = RECORDED
    assert weights.dtype == np.float64 and np.ptp(weights, axis=0).min() > 0.5  # lest any profile do
    for steps in STORED + WANTED:
        for step in (1, 2, 100, *KEPT):
            profile = functions.ema_profile(half_life(steps), step, STEPS + 1)
            assert profile.shape == (STEPS + 1,) and not profile[step + 1 :].any()
            np.testing.assert_allclose(profile @ weights, averages[steps, step], rtol=0, atol=ROUNDING)


def combination(functions: ModuleType | SimpleNamespace, wanted: float) -> tuple[np.ndarray, float, float]:
    """The post-hoc average of a half-life at the last step, its profile's error, and the bound of its own error."""
    weights, averages = RECORDED
    snapshots = [(steps, step) for step in KEPT for steps in STORED]
    profiles = [ema.ema_profile(half_life(steps), step, STEPS + 1) for steps, step in snapshots]
    target = ema.ema_profile(half_life(wanted), STEPS)
    c, error = functions.post_hoc_ema(profiles, target)
    bound = error * np.linalg.norm(target) * np.linalg.norm(weights - weights[-1], axis=0)  # (P,), Cauchy-Schwarz
    return c @ [averages[snapshot] for snapshot in snapshots], error, bound


def check_combination(functions: ModuleType | SimpleNamespace) -> None:
    """Within its bound of the true average; the profile's error is that of the best coefficients that sum to 1."""
    _, averages = RECORDED
    for wanted in WANTED:
        average, error, bound = combination(functions, wanted)
        assert 1e-4 < error < 0.1
        assert (np.abs(average - averages[wanted, STEPS]) <= bound + ROUNDING).all()
        assert abs(error - least_error(wanted)) <= 1e-6 * error


def least_error(wanted: float) -> float:
    """The smallest error of a profile, by the normal equations with a Lagrange multiplier for the sum of 1."""
    profiles = np.array([ema.ema_profile(half_life(h), step, STEPS + 1) for step in KEPT for h in STORED])
    target = ema.ema_profile(half_life(wanted), STEPS)
    n = len(profiles)
    matrix, right = np.ones((n + 1, n + 1)), np.ones(n + 1)
    matrix[:n, :n], matrix[n, n], right[:n] = profiles @ profiles.T, 0, profiles @ target
    c = np.linalg.solve(matrix, right)[:n]
    return float(np.linalg.norm(c @ profiles - target) / np.linalg.norm(target))


def check_span(functions: ModuleType | SimpleNamespace) -> None:
    """A wanted profile that is a combination of the stored ones comes out exactly."""
    profiles = [ema.ema_profile(half_life(h), step, 301) for h in (10.0, 50.0) for step in (200, 300)]
    for c in (np.array([0.3, -0.5, 0.4, 0.8]), np.array([0.0, 0.0, 0.0, 1.0])):
        found, error = functions.post_hoc_ema(profiles, c @ np.array(profiles))
        np.testing.assert_allclose(found, c, atol=1e-9)
        assert error < 1e-12
    found, error = functions.post_hoc_ema(profiles[:1], profiles[0])
    assert found.tolist() == [1] and error == 0


CHECKS = [check_profiles, check_combination, check_span]


@pytest.mark.parametrize("check", CHECKS)
def test_the_checks_hold(check):
    check(ema)


def test_a_profile_sums_to_1_and_weights_that_stand_come_out_exactly():
    for decay, step in ((0.5, 3), (0.995, 2000), (0.9999, 50)):
        assert abs(ema.ema_profile(decay, step).sum() - 1) < 1e-12
    c, error = ema.post_hoc_ema([ema.ema_profile(0.5, 300), ema.ema_profile(0.8, 300)], ema.ema_profile(0.95, 300))
    assert error > 0.01 and abs(c.sum() - 1) < 1e-15


MUTANTS = [
    ("ema_profile", "np.arange(1, step + 1)", "np.arange(step)", check_profiles),
    ("ema_profile", "(10 + k)", "(9 + k)", check_profiles),
    ("ema_profile", "(1 - decays) * kept[1:]", "(1 - decays) * kept[:-1]", check_profiles),
    ("ema_profile", "np.cumprod(decays[::-1])[::-1]", "np.cumprod(decays)", check_profiles),
    ("ema_profile", "np.append(kept[0], ", "np.append(0, ", check_profiles),
    ("post_hoc_ema", "wanted - last, rcond", "wanted, rcond", check_combination),
    ("post_hoc_ema", "[profile - last for", "[profile for", check_combination),
    ("post_hoc_ema", "1 - c.sum()", "0", check_span),
    ("post_hoc_ema", "np.linalg.norm(difference)", "np.linalg.norm(difference) ** 2", check_combination),
    ("post_hoc_ema", "/ np.linalg.norm(wanted)", "", check_combination),
    ("post_hoc_ema", "rcond=RCOND", "rcond=0.5", check_combination),
]


def mutated(name: str, text: str, mistake: str) -> SimpleNamespace:
    """The two functions, with the source text of one of them changed in one place."""
    source, changed = inspect.getsource(getattr(ema, name)), dict(vars(ema))
    assert source.count(text) == 1
    exec(source.replace(text, mistake), changed)
    return SimpleNamespace(ema_profile=changed["ema_profile"], post_hoc_ema=changed["post_hoc_ema"])


@pytest.mark.parametrize("name, text, mistake, check", MUTANTS)
def test_mutants_fail(name, text, mistake, check):
    with pytest.raises(AssertionError):
        check(mutated(name, text, mistake))


@pytest.mark.parametrize("check", CHECKS)
def test_unchanged_functions_pass(check):
    check(mutated("post_hoc_ema", "1 - c.sum()", "1 - np.sum(c)"))
