"""How to walk back from noise to a picture: a sampler and its settings, also those of a scheduler_config.json."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from minidiff.errors import MinidiffError

SAMPLERS = ("ddpm", "ddim", "pndm", "euler", "euler_ancestral", "heun", "dpmpp_2m")
SPACINGS = ("trailing", "leading", "linspace")
VARIANCES = ("fixed_small", "fixed_large")
CAN_BE_KARRAS = ("euler", "heun", "dpmpp_2m")


@dataclass(frozen=True)
class Sampler:
    """A way of walking back.

    name       one of SAMPLERS; what each does stands in `walks.py`
    spacing    how the steps are spread over the schedule's T: see `levels.timesteps`
    offset     is added to every timestep of "leading"
    eta        ddim's share of fresh noise: 0 none, 1 as much as in DDPM
    variance   of ddpm's fresh noise: "fixed_small" (beta tilde) or "fixed_large" (beta), both DDPM section 3.2
    clip       x0_hat is kept within [-clip, clip]; None lets it be, as latents need
    clean_end  whether the last step leads to no noise at all, or to as much as the schedule has at t = 0
    karras     whether the noise falls as Karras et al. (2022, eq. 5) have it, not evenly in t
    Raises MinidiffError for a value that is unknown or that its sampler does not know.
    """

    name: str = "ddim"
    spacing: str = "trailing"
    offset: int = 0
    eta: float = 0.0
    variance: str = "fixed_small"
    clip: float | None = 1.0
    clean_end: bool = True
    karras: bool = False

    def __post_init__(self) -> None:
        for key, known in (("name", SAMPLERS), ("spacing", SPACINGS), ("variance", VARIANCES)):
            if getattr(self, key) not in known:
                what = "sampler" if key == "name" else key
                raise MinidiffError(f"{what} {getattr(self, key)!r:.80} is unknown: use one of {', '.join(known)}")
        for key in ("clean_end", "karras"):
            if not isinstance(getattr(self, key), bool):
                raise MinidiffError(f"{key} must be true or false, not {getattr(self, key)!r:.80}")
        if type(self.offset) is not int or not 0 <= self.offset <= 1000:
            raise MinidiffError(f"offset must be a whole number from 0 to 1000, not {self.offset!r:.80}")
        if self.clip is not None and (not isinstance(self.clip, float | int) or not self.clip > 0):
            raise MinidiffError(f"clip must be a number above 0, or None, not {self.clip!r:.80}")
        check_eta(self.eta)
        if self.eta != 0 and self.name != "ddim":
            raise MinidiffError(f"eta = {self.eta} is for the ddim sampler: {self.name} has none")
        if self.karras and self.name not in CAN_BE_KARRAS:
            raise MinidiffError(f"karras is for {', '.join(CAN_BE_KARRAS)}: {self.name} walks over whole timesteps")


def check_eta(eta: Any) -> None:
    """Raises MinidiffError unless eta is from 0 to 1."""
    if not isinstance(eta, float | int) or not 0 <= eta <= 1:  # NaN is not
        raise MinidiffError(f"eta must be from 0 to 1, not {eta!r:.80}")


class Kind(NamedTuple):
    """A scheduler class of diffusers: its sampler, and what it takes for a key that is absent."""

    sampler: str
    spacing: str
    clip_sample: bool | None  # None: it never clips
    clean_end: bool = True


KINDS = {
    "DDPMScheduler": Kind("ddpm", "leading", True),
    "DDIMScheduler": Kind("ddim", "leading", True),
    "PNDMScheduler": Kind("pndm", "leading", None, clean_end=False),
    "EulerDiscreteScheduler": Kind("euler", "linspace", None),
    "EulerAncestralDiscreteScheduler": Kind("euler_ancestral", "linspace", None),
    "HeunDiscreteScheduler": Kind("heun", "linspace", False),
    "DPMSolverMultistepScheduler": Kind("dpmpp_2m", "linspace", None),
}

# Of keys that change the walk in ways not built here, the only value that is accepted.
FIXED = {
    "algorithm_type": "dpmsolver++", "euler_at_final": False, "interpolation_type": "linear",
    "lambda_min_clipped": -math.inf, "lower_order_final": True, "sigma_max": None, "sigma_min": None,
    "skip_prk_steps": True, "solver_order": 2, "solver_type": "midpoint", "thresholding": False,
    "timestep_type": "discrete", "use_beta_sigmas": False, "use_dynamic_shifting": False,
    "use_exponential_sigmas": False, "use_flow_sigmas": False, "use_lu_lambdas": False,
}  # fmt: skip


def sampler_from_config(config: dict[str, Any], name: str | None = None) -> Sampler:
    """The sampler that a diffusers scheduler_config.json describes; its betas are `schedule_from_config`'s matter.

    With a name, another sampler, which takes from the configuration what it knows of it: diffusers' `from_config`.
    Raises MinidiffError for a class or a value that is not built here, by its name.
    """
    if not isinstance(config, dict):
        raise MinidiffError(f"a scheduler configuration must be keys and values, not {config!r:.80}")
    if name is not None:
        config = config | {"_class_name": _class_of(name), "skip_prk_steps": True}
    found = config.get("_class_name")
    if found not in tuple(KINDS):  # not in KINDS itself: JSON may hold a list here, which has no hash
        raise MinidiffError(f"scheduler class {found!r:.80} is not supported: use one of {', '.join(KINDS)}")
    kind = KINDS[found]
    given = {"skip_prk_steps": False} | config if kind.sampler == "pndm" else config
    for key in given.keys() & FIXED.keys():
        if given[key] != FIXED[key]:
            raise MinidiffError(f"{key} = {given[key]!r:.80} is not supported: use {FIXED[key]!r}")
    clips = kind.clip_sample is not None and _flag(config, "clip_sample", kind.clip_sample)
    return Sampler(
        kind.sampler,
        config.get("timestep_spacing", kind.spacing),
        config.get("steps_offset", 0),
        variance=config.get("variance_type", "fixed_small") if kind.sampler == "ddpm" else "fixed_small",
        clip=config.get("clip_sample_range", 1.0) if clips else None,
        clean_end=_clean_end(config, kind),
        karras=kind.sampler in CAN_BE_KARRAS and _flag(config, "use_karras_sigmas", False),
    )


def sampler_to_config(sampler: Sampler) -> dict[str, Any]:
    """The keys of a scheduler_config.json beside those of the schedule."""
    clip = {} if sampler.clip in (None, 1.0) else {"clip_sample_range": sampler.clip}
    return {
        "_class_name": _class_of(sampler.name),
        "timestep_spacing": sampler.spacing,
        "steps_offset": sampler.offset,
        "variance_type": sampler.variance,
        "clip_sample": sampler.clip is not None,
        **clip,
        "set_alpha_to_one": sampler.clean_end,
        "final_sigmas_type": "zero" if sampler.clean_end else "sigma_min",
        "use_karras_sigmas": sampler.karras,
        "skip_prk_steps": True,
    }


def _class_of(name: str) -> str:
    """diffusers' class for a sampler. Raises MinidiffError for an unknown one."""
    return next(known for known, kind in KINDS.items() if kind.sampler == Sampler(name).name)


def _clean_end(config: dict[str, Any], kind: Kind) -> bool:
    """Whether its last step leads to no noise, which two classes ask as one question and two as another."""
    if kind.sampler in ("ddim", "pndm"):
        return _flag(config, "set_alpha_to_one", kind.clean_end)
    if kind.sampler not in ("euler", "dpmpp_2m"):
        return True
    end = config.get("final_sigmas_type", "zero")
    if end not in ("zero", "sigma_min"):
        raise MinidiffError(f"final_sigmas_type {end!r:.80} is not supported: use zero or sigma_min")
    return end == "zero"


def _flag(config: dict[str, Any], key: str, absent: bool) -> bool:
    value = config.get(key, absent)
    if not isinstance(value, bool):
        raise MinidiffError(f"{key} must be true or false, not {value!r:.80}")
    return value
