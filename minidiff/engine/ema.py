"""Moving averages of the weights after training: their profiles, and the combination of stored averages into another.

An average at step n is the sum over j of w_j p_j: p_0 are the initial weights, p_j those after step j, and w is its
profile. Averages are linear in their profiles, so a combination of averages whose profiles add up to almost another
profile is almost that average (Karras et al. 2024, arXiv 2312.02696, section 3.2: post-hoc EMA).
"""

from collections.abc import Sequence

import numpy as np

RCOND = 1e-4  # smaller singular values are dropped: their coefficients would amplify the averages' rounding, 2^-24


def ema_profile(decay: float, step: int, length: int | None = None) -> np.ndarray:
    """The profile w (length,) of AdamW's EMA at a step: w_j is the weight of p_j; zero after the step.

    w_j = (1 - d_j) d_{j+1} ... d_step and w_0 = d_1 ... d_step, with the decay d_k = min(decay, (1 + k) / (10 + k)) of
    step k, as `ema_decay` has it. They sum to 1. length: None is step + 1.
    It holds for a training that skipped no step; a skipped step leaves the average unchanged.
    """
    k = np.arange(1, step + 1)
    decays = np.minimum(decay, (1 + k) / (10 + k))  # (step,), d_1 first
    kept = np.append(np.cumprod(decays[::-1])[::-1], 1.0)  # (step + 1,), kept_j = d_{j+1} ... d_step
    profile = np.append(kept[0], (1 - decays) * kept[1:])
    return profile if length is None else np.pad(profile, (0, length - len(profile)))


def post_hoc_ema(profiles: Sequence[np.ndarray], wanted: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients c (S,) of the stored averages whose combination is closest to the average of a wanted profile.

    They minimise |sum of c_i profiles_i - wanted| over all c that sum to 1, so that weights that stand still come out
    exactly; the paper's (appendix C.3) leaves the sum free. profiles: S arrays (n + 1,); wanted (n + 1,), any profile.
    The second value is the error of the profile, that minimum relative to |wanted|: 0 if the stored profiles span it.
    The error of an average is at most the profile's times |wanted| times the root of the sum of |p_j - p_n|^2.
    """
    *others, last = profiles
    c = np.zeros(0)
    if others:
        directions = np.stack([profile - last for profile in others], axis=1)  # (n + 1, S - 1)
        c = np.linalg.lstsq(directions, wanted - last, rcond=RCOND)[0]
    c = np.append(c, 1 - c.sum())
    difference = sum(ci * profile for ci, profile in zip(c, profiles, strict=True)) - wanted
    return c, float(np.linalg.norm(difference) / np.linalg.norm(wanted))
