"""One step of reverse diffusion, from x_t to something a little less noisy.

eps_hat is what the model predicts at x_t: the noise, or x0 or v where the schedule's prediction type says so.
z is fresh noise, or 0 where a step takes none. x_t, eps_hat and z are float (N, H, W, C), t is an int of the
schedule; a long step of DDPM is a step of a schedule that `respace` made short.
"""

import math

import numpy as np

from minidiff.diffusion.forward import at, q_posterior, x0_and_eps
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
    """One step of DDPM algorithm 2, x_t to x_{t-1}: q_posterior with the guess x0_hat for x0, plus noise.

    The noise has variance beta tilde ("fixed_small") or beta ("fixed_large", both DDPM section 3.2); at t = 0
    there is none. x0_hat is kept within [-clip, clip]. Raises MinidiffError for another variance.
    """
    if variance not in VARIANCES:
        raise MinidiffError(f"variance {variance!r:.80} is not supported: use {' or '.join(VARIANCES)}")
    x0_hat = clipped(x0_and_eps(schedule, eps_hat, x_t, t)[0], clip)
    mean, beta_tilde = q_posterior(schedule, x0_hat, x_t, t)  # eq. 7; eq. 11 is this with eps_hat put in
    if t == 0:
        return mean
    sigma2 = beta_tilde if variance == "fixed_small" else at(schedule.betas, t, x_t)
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
    """One step of DDIM (eq. 12), x_t to x at any earlier t_prev, of which -1 is the clean end.

    eta is how much of the noise becomes fresh: 0 none, 1 as much as in DDPM. x0_hat is kept within [-clip, clip],
    and the guess of the noise left as it is. Raises MinidiffError for another eta or a t_prev not below t.
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

    Every sampler moves by this formula. Euler's step over sigma = sqrt((1 - alpha_bar) / alpha_bar) is this one (DDIM
    eq. 13), and with eta = 1 it is the ancestral one; solvers of higher order put better guesses in.
    """
    # both roots: below 0 by rounding only
    sigma = float(eta) * math.sqrt(
        max(0.0, (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev))
    )  # eq. 16
    kept = math.sqrt(max(0.0, 1 - alpha_bar_prev - sigma**2))
    return math.sqrt(alpha_bar_prev) * x0_hat + kept * eps_hat + sigma * z  # eq. 12


def clipped(x0_hat: np.ndarray, clip: float | None) -> np.ndarray:
    """x0_hat within [-clip, clip], or as it is."""
    return x0_hat if clip is None else x0_hat.clip(-clip, clip)


def x0_given_eps(x_t: np.ndarray, eps_hat: np.ndarray, alpha_bar: float) -> np.ndarray:
    """The x0 that makes x_t, at the noise level alpha_bar, with that noise (DDPM eq. 15)."""
    return (x_t - math.sqrt(1 - alpha_bar) * eps_hat) / math.sqrt(alpha_bar)


def eps_given_x0(x_t: np.ndarray, x0_hat: np.ndarray, alpha_bar: float) -> np.ndarray:
    """The noise that makes x_t, at the noise level alpha_bar, with that x0."""
    return (x_t - math.sqrt(alpha_bar) * x0_hat) / math.sqrt(1 - alpha_bar)


def log_snr(alpha_bar: float) -> float:
    """lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), half the log-SNR; infinite at alpha_bar = 1."""
    return (math.log(alpha_bar) - math.log(1 - alpha_bar)) / 2 if alpha_bar < 1 else math.inf
