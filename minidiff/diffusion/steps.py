"""Single steps of reverse diffusion, from x_t to a lower noise level.

eps_hat is the model's prediction at x_t: the noise, or x0 or v, by the schedule's prediction type. z is fresh noise,
or 0 where a step takes none. x_t, eps_hat and z are float (N, H, W, C), t is an int of the schedule. DDPM with fewer
steps than T takes single steps of a respaced schedule (`respace`).
"""

import math

import numpy as np

from minidiff.diffusion.forward import extract, q_posterior, x0_and_eps
from minidiff.diffusion.sampler import VARIANCES, check_eta
from minidiff.diffusion.schedule import Schedule
from minidiff.errors import MinidiffError


def p_sample(
    schedule: Schedule,
    eps_hat: np.ndarray,
    x_t: np.ndarray,
    t: int,
    z: np.ndarray | float,
    variance: str = "fixed_small",
    clip: float | None = None,
) -> np.ndarray:
    """One step of DDPM algorithm 2, x_t to x_{t-1}: the mean of q_posterior with x0_hat for x0, plus noise.

    The variance of the noise is beta tilde_t ("fixed_small") or beta_t ("fixed_large"), both DDPM section 3.2, and 0
    at t = 0. x0_hat is clipped to [-clip, clip]. Raises MinidiffError for another variance.
    """
    if variance not in VARIANCES:
        raise MinidiffError(f"variance {variance!r:.80} is not supported: use {' or '.join(VARIANCES)}")
    x0_hat = clipped(x0_and_eps(schedule, eps_hat, x_t, t)[0], clip)
    mean, beta_tilde = q_posterior(schedule, x0_hat, x_t, t)  # eq. 7; with eps_hat substituted, eq. 11
    if t == 0:
        return mean
    sigma2 = beta_tilde if variance == "fixed_small" else extract(schedule.betas, t, x_t)
    return mean + sigma2**0.5 * z


def ddim_step(
    schedule: Schedule,
    eps_hat: np.ndarray,
    x_t: np.ndarray,
    t: int,
    t_prev: int,
    eta: float,
    z: np.ndarray | float,
    clip: float | None = None,
) -> np.ndarray:
    """One step of DDIM (eq. 12), from x_t to any earlier t_prev; -1 is the clean image.

    eta scales the standard deviation of the fresh noise: 0 is deterministic, 1 has DDPM's beta tilde (eq. 16). x0_hat
    is clipped to [-clip, clip], eps_hat is not changed. Raises MinidiffError for another eta or a t_prev not below t.
    """
    check_eta(eta)
    if not -1 <= t_prev < t:
        raise MinidiffError(f"t_prev must be from -1 to t - 1 = {t - 1}, not {t_prev}")
    x0_hat, eps_hat = x0_and_eps(schedule, eps_hat, x_t, t)
    alpha_bar, alpha_bar_prev = schedule.alphas_cumprod[t], schedule.alphas_cumprod_prev[t_prev + 1]
    return ddim_update(clipped(x0_hat, clip), eps_hat, alpha_bar, alpha_bar_prev, eta, z)


def ddim_update(
    x0_hat: np.ndarray,
    eps_hat: np.ndarray,
    alpha_bar: float,
    alpha_bar_prev: float,
    eta: float = 0.0,
    z: np.ndarray | float = 0.0,
) -> np.ndarray:
    """x at the noise level alpha_bar_prev, from x0_hat and eps_hat at the noise level alpha_bar (DDIM eq. 12, 16).

    Every sampler takes its steps by this formula but ddpm, which samples the posterior, and euler_maruyama. Euler's
    step in sigma = sqrt((1 - alpha_bar) / alpha_bar) is this one (DDIM eq. 13), with eta = 1 it is Euler's ancestral
    step; solvers of higher order use other estimates x0_hat and eps_hat.
    """
    # eq. 16; under both roots only rounding makes a value negative
    sigma = float(eta) * math.sqrt(max(0.0, (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)))
    eps_coef = math.sqrt(max(0.0, 1 - alpha_bar_prev - sigma**2))
    return math.sqrt(alpha_bar_prev) * x0_hat + eps_coef * eps_hat + sigma * z  # eq. 12


def clipped(x0_hat: np.ndarray, clip: float | None) -> np.ndarray:
    """x0_hat clipped to [-clip, clip]; unchanged if clip is None."""
    return x0_hat if clip is None else x0_hat.clip(-clip, clip)


def log_snr(alpha_bar: float) -> float:
    """lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), half the log-SNR; infinite at alpha_bar = 1."""
    return (math.log(alpha_bar) - math.log(1 - alpha_bar)) / 2 if alpha_bar < 1 else math.inf
