"""Single steps of reverse diffusion, from x_t to a lower noise level.

eps_hat is the model's prediction at x_t: the noise, or x0 or v, by the schedule's prediction type. z is fresh noise,
or 0 where a step takes none. x_t, eps_hat and z are float (N, H, W, C), t is an int of the schedule. DDPM with fewer
steps than T takes single steps of a respaced schedule (`respace`).
"""

import math
from typing import Any

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

    The variance of the noise is `reverse_variance`, and 0 at t = 0; with "learned_range" eps_hat is (N, H, W, 2 C), its
    second half v. x0_hat is clipped to [-clip, clip]. Raises MinidiffError for another variance.
    """
    if variance not in VARIANCES:
        raise MinidiffError(f"variance {variance!r:.80} is not supported: use {' or '.join(VARIANCES)}")
    C = x_t.shape[-1]
    x0_hat = clipped(x0_and_eps(schedule, eps_hat[..., :C], x_t, t)[0], clip)
    mean, _ = q_posterior(schedule, x0_hat, x_t, t)  # eq. 7; with eps_hat substituted, eq. 11
    if t == 0:
        return mean
    return mean + reverse_variance(schedule, eps_hat[..., C:], x_t, t, variance) ** 0.5 * z


def reverse_variance(schedule: Schedule, v: Any, x_t: Any, t: int | np.ndarray, variance: str) -> Any:
    """The variance of p(x_{t-1} | x_t), of shape (N or 1, 1, 1, 1), or v's.

    "fixed_small": beta tilde_t; "fixed_large": beta_t (both DDPM section 3.2); "learned_range": `learned_log_variance`.
    v is used by the last alone. At t = 0, where beta tilde is 0, it is that of t = 1, as in DDPM's decoder.
    """
    if variance == "learned_range":
        return np.exp(learned_log_variance(schedule, v, t))
    return extract(schedule.betas if variance == "fixed_large" else decoder_beta_tilde(schedule), t, x_t)


def learned_log_variance(schedule: Schedule, v: Any, t: int | np.ndarray) -> Any:
    """log variance = v' log beta_t + (1 - v') log beta tilde_t, v' = (v + 1) / 2 (Nichol & Dhariwal 2021, eq. 15).

    v, float (N, H, W, C), is the second half of the channels of a model with a learned variance: -1 gives the smallest
    variance that can be optimal, 1 the largest; it is not clipped.
    """
    smallest, largest = extract(np.log(decoder_beta_tilde(schedule)), t, v), extract(np.log(schedule.betas), t, v)
    fraction = (v + 1) / 2
    return fraction * largest + (1 - fraction) * smallest


def decoder_beta_tilde(schedule: Schedule) -> np.ndarray:
    """beta tilde, (T,), with that of t = 1 in the place of 0 at t = 0."""
    beta_tilde = schedule.posterior_variance
    return np.concatenate([beta_tilde[1:2], beta_tilde[1:]])


def diffusers_last_std(schedule: Schedule, v: np.ndarray, variance: str) -> Any:
    """The standard deviation of the noise that diffusers adds in the step to alpha_bar = 1 from a t other than 0.

    For "fixed_large" and "learned_range"; there it takes beta tilde, which is 0, to be 1e-20.
    """
    largest = math.sqrt(schedule.betas[0])
    if variance == "fixed_large":
        return largest
    fraction = (v + 1) / 2
    return largest**fraction * 1e-10 ** (1 - fraction)


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
