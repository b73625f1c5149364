"""How to walk back from noise to a picture: a sampler and its settings, also those of a scheduler_config.json."""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from minidiff.errors import MinidiffError

SAMPLERS = ("ddpm", "ddim", "pndm", "euler", "euler_ancestral", "heun", "dpmpp_2m")
SPACINGS = ("trailing", "leading", "linspace")
VARIANCES = ("fixed_small", "fixed_large")
KARRAS_SAMPLERS = ("euler", "heun", "dpmpp_2m")
WITHOUT_ZERO_SNR = ("pndm", "heun")  # their classes in diffusers pass over rescale_betas_zero_snr


@dataclass(frozen=True)
class Sampler:
    """A way of walking back.

    name       one of SAMPLERS; what each does stands in `reverse.py`
    spacing    how the steps are spread over the schedule's T: see `levels.timesteps`
    offset     is added to every timestep of "leading"
    eta        ddim's share of fresh noise: 0 none, 1 as much as in DDPM
    variance   of ddpm's fresh noise: "fixed_small" (beta tilde) or "fixed_large" (beta), both DDPM section 3.2
    clip       x0_hat is kept within [-clip, clip]; None lets it be, as latents need
    clean_end  whether the last step leads to no noise at all, or to as much as the schedule has at t = 0
    karras     whether the noise falls as Karras et al. (2022, eq. 5) have it, not evenly in t
    as_diffusers  whether to follow diffusers 0.42.1 also where it leaves the papers: the timestep that ddim and pndm
               step to, the noise of the last step, the single step of "linspace" (docs/samplers.md)
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
    as_diffusers: bool = False

    def __post_init__(self) -> None:
        for key, known in (("name", SAMPLERS), ("spacing", SPACINGS), ("variance", VARIANCES)):
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
        if self.karras and self.name not in KARRAS_SAMPLERS:
            raise MinidiffError(f"karras is for {', '.join(KARRAS_SAMPLERS)}: {self.name} walks over whole timesteps")


def check_eta(eta: Any) -> None:
    """Raises MinidiffError unless eta is from 0 to 1."""
    if isinstance(eta, bool) or not isinstance(eta, float | int) or not 0 <= eta <= 1:  # NaN is not
        raise MinidiffError(f"eta must be from 0 to 1, not {eta!r:.80}")


class SchedulerClass(NamedTuple):
    """A scheduler class of diffusers: its sampler, its own spacing, and the other keys it knows, at their defaults."""

    sampler: str
    spacing: str
    keys: dict[str, Any]


CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
KARRAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
SCHEDULERS = {
    "DDPMScheduler": SchedulerClass("ddpm", "leading", CLIP | {"variance_type": "fixed_small", "thresholding": False}),
    "DDIMScheduler": SchedulerClass("ddim", "leading", CLIP | {"set_alpha_to_one": True, "thresholding": False}),
    "PNDMScheduler": SchedulerClass("pndm", "leading", {"set_alpha_to_one": False, "skip_prk_steps": False}),
    "EulerDiscreteScheduler": SchedulerClass("euler", "linspace", KARRAS | {
        "final_sigmas_type": "zero", "interpolation_type": "linear", "timestep_type": "discrete", "sigma_min": None,
        "sigma_max": None,
    }),
    "EulerAncestralDiscreteScheduler": SchedulerClass("euler_ancestral", "linspace", {}),
    "HeunDiscreteScheduler": SchedulerClass("heun", "linspace", CLIP | {"clip_sample": False} | KARRAS),
    "DPMSolverMultistepScheduler": SchedulerClass("dpmpp_2m", "linspace", KARRAS | {
        "final_sigmas_type": "zero", "algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint",
        "lower_order_final": True, "euler_at_final": False, "lambda_min_clipped": -math.inf, "thresholding": False,
        "use_lu_lambdas": False, "use_flow_sigmas": False, "use_dynamic_shifting": False,
    }),
    # Euler's method over continuous times, which are all that their other keys tell of (continuous.py)
    "EDMEulerScheduler": SchedulerClass("euler", "trailing", {}),
    "FlowMatchEulerDiscreteScheduler": SchedulerClass("euler", "trailing", {}),
}  # fmt: skip

# Of keys that change the walk in ways not built here, the only value that is accepted.
FIXED = {
    "algorithm_type": "dpmsolver++", "euler_at_final": False, "interpolation_type": "linear",
    "lambda_min_clipped": -math.inf, "lower_order_final": True, "sigma_max": None, "sigma_min": None,
    "skip_prk_steps": True, "solver_order": 2, "solver_type": "midpoint", "thresholding": False,
    "timestep_type": "discrete", "use_beta_sigmas": False, "use_dynamic_shifting": False,
    "use_exponential_sigmas": False, "use_flow_sigmas": False, "use_lu_lambdas": False,
}  # fmt: skip

# What a Sampler's fields are called in the file.
KEYS = {
    "spacing": "timestep_spacing", "offset": "steps_offset", "variance": "variance_type", "clip": "clip_sample_range",
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
    if found not in tuple(SCHEDULERS):  # not in KINDS itself: JSON may hold a list here, which has no hash
        raise MinidiffError(f"scheduler class {found!r:.80} is not supported: use one of {', '.join(SCHEDULERS)}")
    kind = SCHEDULERS[found]
    chosen = {key: config.get(key, default) for key, default in kind.keys.items()}
    for key in chosen.keys() & FIXED.keys():
        if chosen[key] != FIXED[key]:
            raise MinidiffError(f"{key} = {chosen[key]!r:.80} is not supported: use {FIXED[key]!r}")
    if _flag(chosen, "clip_sample", False) and chosen["clip_sample_range"] is None:
        raise MinidiffError("clip_sample_range must be a number, not None")
    try:
        return Sampler(
            kind.sampler,
            config.get("timestep_spacing", kind.spacing),
            config.get("steps_offset", 0),
            variance=chosen.get("variance_type", "fixed_small"),
            clip=chosen["clip_sample_range"] if _flag(chosen, "clip_sample", False) else None,
            clean_end=_flag(chosen, "set_alpha_to_one", True) and _final_sigma(chosen) == "zero",
            karras=_flag(chosen, "use_karras_sigmas", False),
        )
    except MinidiffError as error:
        field, _, rest = str(error).partition(" ")
        raise MinidiffError(f"{KEYS.get(field, field)} {rest}") from None


def sampler_to_config(sampler: Sampler) -> dict[str, Any]:
    """The keys of a scheduler_config.json beside those of the schedule.

    Raises MinidiffError for settings that the sampler's class in diffusers does not have; eta and as_diffusers are
    none of a file.
    """
    kind = SCHEDULERS[_class_of(sampler.name)]
    own = {
        "variance_type": sampler.variance,
        "clip_sample": sampler.clip is not None,
        "clip_sample_range": 1.0 if sampler.clip is None else sampler.clip,
        "set_alpha_to_one": sampler.clean_end,
        "final_sigmas_type": "zero" if sampler.clean_end else "sigma_min",
        "use_karras_sigmas": sampler.karras,
        "skip_prk_steps": True,
    }
    config = {"_class_name": _class_of(sampler.name), "timestep_spacing": sampler.spacing}
    config |= {"steps_offset": sampler.offset} | {key: own[key] for key in kind.keys if key in own}
    if sampler_from_config(config) != replace(sampler, eta=0.0, as_diffusers=False):
        raise MinidiffError(f"{sampler}: diffusers' {config['_class_name']} has no such settings")
    return config


def _class_of(name: str) -> str:
    """diffusers' class for a sampler. Raises MinidiffError for an unknown one."""
    return next(known for known, kind in SCHEDULERS.items() if kind.sampler == Sampler(name).name)


def _final_sigma(chosen: dict[str, Any]) -> str:
    end = chosen.get("final_sigmas_type", "zero")
    if end not in ("zero", "sigma_min"):
        raise MinidiffError(f"final_sigmas_type {end!r:.80} is not supported: use zero or sigma_min")
    return end


def _flag(chosen: dict[str, Any], key: str, absent: bool) -> bool:
    value = chosen.get(key, absent)
    if not isinstance(value, bool):
        raise MinidiffError(f"{key} must be true or false, not {value!r:.80}")
    return value
