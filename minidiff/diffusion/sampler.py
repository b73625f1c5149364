"""The settings of a sampler."""

import math
from dataclasses import dataclass
from typing import Any

from minidiff.errors import MinidiffError

SAMPLERS = (
    "ddpm", "ddim", "pndm", "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "unipc",
    "euler_maruyama", "consistency",
)  # fmt: skip
SPACINGS = ("trailing", "leading", "linspace")
LOG_SIGMA = "log_sigma"  # spacing of consistency alone: see `noise_levels.consistency_times`
VARIANCES = ("fixed_small", "fixed_large", "learned_range")
KARRAS_SAMPLERS = ("euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "unipc", "euler_maruyama")
CHURN_SAMPLERS = ("euler", "heun")


@dataclass(frozen=True)
class Sampler:
    """A sampler and its settings.

    name       one of SAMPLERS, the sampling loops in solvers/; "consistency" is for consistency models alone
    spacing    timestep spacing, one of SPACINGS: see `noise_levels.timesteps`; with each of them consistency takes the
               timesteps of diffusers' LCMScheduler, and with LOG_SIGMA its own
    offset     added to every timestep of "leading"
    eta        of ddim: scale of the fresh noise's standard deviation; 0 is deterministic, 1 gives beta tilde (eq. 16)
    variance   of ddpm's fresh noise: "fixed_small" (beta tilde) or "fixed_large" (beta), both DDPM section 3.2, or
               "learned_range", between the two, as the model predicts it (Nichol & Dhariwal 2021, eq. 15)
    clip       x0_hat is clipped to [-clip, clip]; None does not clip, as latents require
    clean_end  whether the last step ends at alpha_bar = 1; else at that of t = 0 (EDM and Flow always end at 1)
    karras     noise levels by Karras et al. (2022, eq. 5) instead of evenly spaced timesteps
    churn      of euler and heun: EDM's S_churn (ibid., algorithm 2). Before each step fresh noise raises the noise
               level sigma by the factor 1 + min(churn / steps, sqrt(2) - 1); 0 adds none
    churn_interval  S_tmin and S_tmax, the sigmas between which noise is added
    churn_noise     S_noise, the standard deviation of that noise, about 1
    as_diffusers  follow diffusers 0.42.1 also where it differs from the papers: the timestep that ddim and pndm
               step to, the noise of the last step, the single step of "linspace", zero terminal SNR
               with pndm and heun, the timesteps of consistency (docs/samplers.md)
    Raises MinidiffError for an unknown value, or one that this sampler does not support.
    """

    name: str = "ddim"
    spacing: str = "trailing"
    offset: int = 0
    eta: float = 0.0
    variance: str = "fixed_small"
    clip: float | None = 1.0
    clean_end: bool = True
    karras: bool = False
    churn: float = 0.0
    churn_interval: tuple[float, float] = (0.0, math.inf)
    churn_noise: float = 1.0
    as_diffusers: bool = False

    def __post_init__(self) -> None:
        spacings = (*SPACINGS, LOG_SIGMA) if self.name == "consistency" else SPACINGS
        for key, known in (("name", SAMPLERS), ("spacing", spacings), ("variance", VARIANCES)):
            if getattr(self, key) not in known:
                what = "sampler" if key == "name" else key
                raise MinidiffError(f"{what} {getattr(self, key)!r:.80} is unknown: use one of {', '.join(known)}")
        for key in ("clean_end", "karras", "as_diffusers"):
            if not isinstance(getattr(self, key), bool):
                raise MinidiffError(f"{key} must be true or false, not {getattr(self, key)!r:.80}")
        if type(self.offset) is not int or not 0 <= self.offset <= 1000:
            raise MinidiffError(f"offset must be a whole number from 0 to 1000, not {self.offset!r:.80}")
        if self.clip is not None and not (type(self.clip) in (int, float) and 0 < self.clip <= 1e6):
            raise MinidiffError(f"clip must be a number above 0, up to a million, or None, not {self.clip!r:.80}")
        check_eta(self.eta)
        if self.eta != 0 and self.name != "ddim":
            raise MinidiffError(f"eta = {self.eta} is for the ddim sampler: {self.name} has none")
        if self.variance == "learned_range" and self.name != "ddpm":
            raise MinidiffError(f"variance learned_range is for the ddpm sampler: {self.name} has none")
        if self.karras and self.name not in KARRAS_SAMPLERS:
            raise MinidiffError(
                f"karras is for {', '.join(KARRAS_SAMPLERS)}, not for {self.name}: leave it out, or choose one of them"
            )
        _check_churn(self)


def check_eta(eta: Any) -> None:
    """Raises MinidiffError unless eta is from 0 to 1."""
    if isinstance(eta, bool) or not isinstance(eta, float | int) or not 0 <= eta <= 1:  # NaN is not
        raise MinidiffError(f"eta must be from 0 to 1, not {eta!r:.80}")


def _check_churn(sampler: Sampler) -> None:
    if not _is_number(sampler.churn) or not 0 <= sampler.churn <= 1e6:  # NaN is not
        raise MinidiffError(f"churn must be a number from 0 to a million, not {sampler.churn!r:.80}")
    if sampler.churn and sampler.name not in CHURN_SAMPLERS:
        raise MinidiffError(f"churn = {sampler.churn:g} is for {' and '.join(CHURN_SAMPLERS)}: {sampler.name} has none")
    ends = sampler.churn_interval
    if not isinstance(ends, tuple) or len(ends) != 2 or not all(map(_is_number, ends)) or not 0 <= ends[0] <= ends[1]:
        raise MinidiffError(f"churn_interval must be two sigmas (lowest, highest), not {ends!r:.80}")
    if not _is_number(sampler.churn_noise) or not 0 < sampler.churn_noise <= 10:
        raise MinidiffError(f"churn_noise must be a number above 0, up to 10, not {sampler.churn_noise!r:.80}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


CONSISTENCY_SAMPLER = Sampler("consistency", LOG_SIGMA)  # of models that `minidiff distill` makes
