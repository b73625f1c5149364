"""Editing with a trained model: image-to-image (SDEdit), inpainting, DDIM inversion, spherical interpolation of noise.

None of these needs training. Images x0 are float32 (N, H, W, C) in [-1, 1].
"""

import math
from numbers import Integral
from typing import Any

import numpy as np

from minidiff.diffusion.forward import eps_from_x0, q_sample, target, v_from_x0_eps, x0_and_eps
from minidiff.diffusion.model import Model, evaluate
from minidiff.diffusion.noise_levels import NoiseLevels, noise_levels
from minidiff.diffusion.reverse import Trajectory, sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule
from minidiff.diffusion.steps import clipped, p_sample
from minidiff.engine.rng import Rng
from minidiff.errors import MinidiffError

INVERTIBLE = Sampler("ddim", clip=None)  # the sampler that `invert` inverts: clipping loses what it cuts off


def redraw(
    model: Model,
    schedule: AnySchedule,
    x0: np.ndarray,
    strength: float,
    rng: Rng,
    steps: int = 50,
    sampler: str | Sampler = "ddim",
    cond: Any = None,
) -> Trajectory:
    """Image-to-image: add noise to images and sample from there (SDEdit, Meng et al. 2022, arXiv 2108.01073).

    strength is the fraction of the steps that are taken (`steps_taken`), the last ones: near 0 little changes, at 1
    (almost) nothing of x0 remains. Yields what `sample` yields. Raises MinidiffError for a strength that is not from 0
    to 1.
    """
    sampler = Sampler(sampler) if isinstance(sampler, str) else sampler
    taken = steps_taken(strength, steps)
    if taken == 0:
        return iter([(-1, x0, x0)])
    eps = rng.standard_normal(x0.shape, dtype=np.float32)
    x_t = q_sample(noise_levels(schedule, steps, sampler).schedule, x0, taken - 1, eps)
    return sample(model, schedule, x0.shape, rng, steps, sampler, cond, x_T=x_t, begin=steps - taken)


def steps_taken(strength: float, steps: int) -> int:
    """How many of the sampling steps image-to-image takes: strength * steps, rounded down as in diffusers.

    Raises MinidiffError for a strength that is not from 0 to 1.
    """
    check_strength(strength)
    return int(strength * steps)


def check_strength(strength: float) -> None:
    """Raises MinidiffError for a strength that is not from 0 to 1."""
    if not 0 <= strength <= 1:  # NaN is not
        raise MinidiffError(f"strength must be from 0 to 1, not {strength!r:.80}")


def inpainting(model: Model, schedule: AnySchedule, x0: np.ndarray, mask: np.ndarray) -> Model:
    """A model for inpainting: `model` where the mask is True; where it is False, the target computed from x0 and x_t.

    In the known region the noise is what x_t holds besides x0, so samplers with a clean end reach x0 there, and at
    every noise level `model` sees the known region with the noise of that level.
    mask is bool (N, H, W, 1), or (H, W, 1) for all images. t must be a timestep of the schedule: sample with ddpm, ddim
    or pndm.
    """

    def predict(x_t: np.ndarray, t: np.ndarray, cond: Any = None) -> np.ndarray:
        eps = eps_from_x0(schedule, x0, x_t, t)
        return np.where(mask, evaluate(model, x_t, t, cond), target(schedule, x0, t, eps))

    return predict


def blended(
    model: Model, schedule: AnySchedule, x0: np.ndarray, mask: np.ndarray, eps: np.ndarray, first_t: float
) -> Model:
    """A model for inpainting whose known region is replaced by x0 with the noise eps at the level of t.

    Blended latent diffusion (Avrahami et al. 2023, arXiv 2206.02779). At first_t, the first timestep, x_t is used
    unchanged: it is noise everywhere. The samples are not valid in the known region: take x0 there. mask and t as
    in `inpainting`.
    """

    def predict(x_t: np.ndarray, t: np.ndarray, **extras: Any) -> Any:
        blend = x_t if t[0] == first_t else np.where(mask, x_t, q_sample(schedule, x0, t, eps))
        return model(blend, t, **extras)

    return predict


def repaint(
    model: Model,
    schedule: AnySchedule,
    x0: np.ndarray,
    mask: np.ndarray,
    rng: Rng,
    steps: int = 50,
    cond: Any = None,
    resample: int = 10,
    clip: float | None = 1.0,
) -> Trajectory:
    """Inpainting by RePaint (Lugmayr et al. 2022, arXiv 2201.09865, algorithm 1): noisy and denoised again.

    x_T is noise. Every step t of DDPM's is taken `resample` times, and each time x_{t-1} is put together of

        known    x_{t-1} = sqrt(alpha_bar_{t-1}) x0 + sqrt(1 - alpha_bar_{t-1}) eps     where the mask is False (eq. 8a)
        unknown  x_{t-1} ~ p(x_{t-1} | x_t), `p_sample`                                 where it is True (eq. 8b)

    Then one step of forward diffusion leads back to t, but for the last time:

        x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) z

    In a repetition the model denoises both regions of one x_{t-1}; with resample = 1 the two are put together and never
    denoised as one at that noise level. The cost is about steps * resample model evaluations.
    mask is bool (N, H, W, 1), or (H, W, 1) for all images; x0_hat is clipped to [-clip, clip]. Yields what `sample`
    yields, after the last repetition of every step. Raises MinidiffError, before the first step, for steps or resample
    that are not valid.
    """
    _check_count("resample", resample, 1)
    levels = noise_levels(schedule, steps, Sampler("ddpm"))

    def fresh_noise() -> np.ndarray:
        return rng.standard_normal(x0.shape, dtype=np.float32)

    def step(x_t: np.ndarray, t: float, i: int) -> tuple[np.ndarray, np.ndarray]:
        """x_{t-1}, put together, and x0_hat."""
        prediction = evaluate(model, x_t, np.full(len(x_t), t), cond)
        x0_hat = clipped(x0_and_eps(levels.schedule, prediction, x_t, i)[0], clip)
        if i == 0:
            return np.where(mask, x0_hat, x0), x0_hat
        known = q_sample(levels.schedule, x0, i - 1, fresh_noise())
        unknown = p_sample(levels.schedule, prediction, x_t, i, fresh_noise(), clip=clip)
        return np.where(mask, unknown, known), x0_hat

    def steps_from(x_t: np.ndarray) -> Trajectory:
        for i, t, t_prev, *_ in levels.sampler_steps():
            x_prev, x0_hat = step(x_t, t, i)
            for _ in range(resample - 1 if i > 0 else 0):
                beta = float(levels.schedule.betas[i])
                x_t = math.sqrt(1 - beta) * x_prev + math.sqrt(beta) * fresh_noise()
                x_prev, x0_hat = step(x_t, t, i)
            x_t = x_prev
            yield t_prev, x_t, x0_hat

    return steps_from(fresh_noise())


def invert(
    model: Model, schedule: AnySchedule, x0: np.ndarray, steps: int = 50, cond: Any = None, fixed_point: int = 5
) -> Trajectory:
    """DDIM inversion (Song et al. 2021, section 4.3): from images x0 to the noise x_T that `sample` makes them of.

    `sample(model, schedule, x0.shape, rng, steps, Sampler("ddim", clip=None), cond, x_T=x_T)` gives x0 back. Let x_t =
    cos(phi) x0 + sin(phi) eps and v = cos(phi) eps - sin(phi) x0 (Salimans & Ho 2022, appendix D). Then a step of DDIM
    from phi to phi_prev is a rotation by d = phi - phi_prev,

        x_prev = cos(d) x_t - sin(d) v(x_t, t),

    and its inverse solves this for x_t by fixed-point iteration, which begins at x_t = x_prev:

        x_t <- (x_prev + sin(d) v(x_t, t)) / cos(d)

    fixed_point is the number of repetitions of this line after the first: 0 is plain DDIM inversion, one evaluation of
    v at x_prev in the place of x_t; with n every step takes n + 1 model evaluations. The iteration contracts if tan(d)
    is less than 1 / the Lipschitz constant of v, at high noise too, where the same line in terms of eps does not.
    Yields (t, x_t, x0_hat) after every step, of rising t: the last x_t is x_T. x0_hat is the model's estimate at the
    last evaluation. Raises MinidiffError, before the first step, for steps or fixed_point that are not valid.
    """
    _check_count("fixed_point", fixed_point, 0)
    return _inverse_steps(model, noise_levels(schedule, steps, INVERTIBLE), x0, cond, fixed_point)


def _inverse_steps(model: Model, levels: NoiseLevels, x_t: np.ndarray, cond: Any, fixed_point: int) -> Trajectory:
    for i, t, _, alpha_bar, alpha_bar_prev in reversed([*levels.sampler_steps()]):
        d = _angle(alpha_bar) - _angle(alpha_bar_prev)
        x_prev, x0_hat = x_t, x_t
        for _ in range(fixed_point + 1):
            prediction = evaluate(model, x_t, np.full(len(x_t), t), cond)
            x0_hat, eps_hat = x0_and_eps(levels.schedule, prediction, x_t, i)
            v = v_from_x0_eps(levels.schedule, x0_hat, eps_hat, i)
            x_t = (x_prev + math.sin(d) * v) / math.cos(d)
        yield t, x_t, x0_hat


def _angle(alpha_bar: float) -> float:
    """phi, of which sqrt(alpha_bar) is the cosine and sqrt(1 - alpha_bar) the sine."""
    return math.atan2(math.sqrt(1 - alpha_bar), math.sqrt(alpha_bar))


def slerp(a: np.ndarray, b: np.ndarray, fraction: float) -> np.ndarray:
    """Spherical linear interpolation (Shoemake 1985) of noise a and b (N, H, W, C), image by image.

    fraction  0 gives a, 1 gives b

    Keeps the norm that Gaussian noise has, the only one that the model was trained on; linear interpolation shrinks it.
    """
    a_flat, b_flat = a.reshape(len(a), -1), b.reshape(len(b), -1)  # (N, HWC)
    cosine = (a_flat * b_flat).sum(1) / (np.linalg.norm(a_flat, axis=1) * np.linalg.norm(b_flat, axis=1))
    angle = np.arccos(cosine.clip(-1, 1)).reshape(-1, 1, 1, 1)  # (N, 1, 1, 1)
    parallel = np.sin(angle) < 1e-6  # the same noise, or its negative: no unique great circle; interpolate linearly
    sine = np.where(parallel, 1, np.sin(angle))
    weight_a = np.where(parallel, 1 - fraction, np.sin((1 - fraction) * angle) / sine)
    weight_b = np.where(parallel, fraction, np.sin(fraction * angle) / sine)
    return (weight_a * a + weight_b * b).astype(a.dtype)


def _check_count(name: str, count: int, least: int) -> None:
    """Raises MinidiffError unless count is an integer from `least` to 1000."""
    if not isinstance(count, Integral) or isinstance(count, bool) or not least <= count <= 1000:
        raise MinidiffError(f"{name} must be an integer from {least} to 1000, not {count!r:.80}")
