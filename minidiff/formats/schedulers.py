"""Schedules and samplers as diffusers' scheduler_config.json: read and written."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from minidiff.diffusion.consistency.function import TIMESTEP_SCALING
from minidiff.diffusion.continuous import EDM, RHO, SIGMA_DATA, Flow
from minidiff.diffusion.noise_levels import MAX_CONSISTENCY_STEPS
from minidiff.diffusion.sampler import LOG_SIGMA, Sampler
from minidiff.diffusion.schedule import (
    PREDICTION_TYPES,
    AnySchedule,
    Schedule,
    check_prediction_type,
    cosine_schedule,
    linear_schedule,
    rescale_zero_terminal_snr,
    scaled_linear_schedule,
    sigmoid_schedule,
)
from minidiff.errors import MinidiffError


class SchedulerClass(NamedTuple):
    """A scheduler class of diffusers: its sampler, its default timestep spacing, its other keys with their defaults."""

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
    "DPMSolverSDEScheduler": SchedulerClass("dpmpp_sde", "linspace", KARRAS),
    "UniPCMultistepScheduler": SchedulerClass("unipc", "linspace", KARRAS | {
        "final_sigmas_type": "zero", "solver_order": 2, "solver_type": "bh2", "predict_x0": True,
        "lower_order_final": True, "disable_corrector": [], "solver_p": None, "thresholding": False,
        "use_flow_sigmas": False, "use_dynamic_shifting": False, "sigma_min": None, "sigma_max": None,
    }),
    "LCMScheduler": SchedulerClass("consistency", "leading", CLIP | {
        "clip_sample": False, "original_inference_steps": MAX_CONSISTENCY_STEPS, "timestep_scaling": TIMESTEP_SCALING,
        "thresholding": False,
    }),
    # or dpmpp_2m_sde, by algorithm_type
    "DPMSolverMultistepScheduler": SchedulerClass("dpmpp_2m", "linspace", KARRAS | {
        "final_sigmas_type": "zero", "algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint",
        "lower_order_final": True, "euler_at_final": False, "lambda_min_clipped": -math.inf, "thresholding": False,
        "use_lu_lambdas": False, "use_flow_sigmas": False, "use_dynamic_shifting": False,
    }),
    # for the continuous schedules; their other keys are in CONTINUOUS_KEYS
    "EDMEulerScheduler": SchedulerClass("euler", "trailing", {}),
    "FlowMatchEulerDiscreteScheduler": SchedulerClass("euler", "trailing", {}),
    "EDMConsistencyScheduler": SchedulerClass("consistency", LOG_SIGMA, {}),  # diffusers has none of this name
    "FlowMatchLCMScheduler": SchedulerClass("consistency", LOG_SIGMA, {}),
}  # fmt: skip
WITHOUT_CLASS = {"euler_maruyama": "EulerDiscreteScheduler"}  # its settings are read as those of this class
WITHOUT_ZERO_SNR = ("pndm", "heun", "dpmpp_sde")  # their classes in diffusers ignore rescale_betas_zero_snr

# Keys that select variants of a sampler. The only supported value is the default, and True of skip_prk_steps.
VARIANTS = {
    "disable_corrector", "euler_at_final", "interpolation_type", "lambda_min_clipped", "lower_order_final",
    "original_inference_steps", "predict_x0", "sigma_max", "sigma_min", "skip_prk_steps", "solver_order", "solver_p",
    "solver_type", "thresholding", "timestep_scaling", "timestep_type", "use_beta_sigmas", "use_dynamic_shifting",
    "use_exponential_sigmas", "use_flow_sigmas", "use_lu_lambdas",
}  # fmt: skip
# algorithm_type of DPMSolverMultistepScheduler -> its sampler
ALGORITHMS = {"dpmsolver++": "dpmpp_2m", "sde-dpmsolver++": "dpmpp_2m_sde"}

# Sampler's fields -> their keys in the file.
FIELD_KEYS = {
    "spacing": "timestep_spacing", "offset": "steps_offset", "variance": "variance_type", "clip": "clip_sample_range",
}  # fmt: skip

# The classes of the continuous schedules, and the only supported values of their keys.
EDM_KEYS = {
    "num_train_timesteps": 1000, "sigma_data": SIGMA_DATA, "rho": float(RHO), "prediction_type": "epsilon",
    "sigma_schedule": "karras", "final_sigmas_type": "zero",
}  # fmt: skip
FLOW_KEYS = {
    "num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False, "invert_sigmas": False,
    "shift_terminal": None, "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
    "stochastic_sampling": False,
}  # fmt: skip
LCM_KEYS = {key: value for key, value in FLOW_KEYS.items() if key != "stochastic_sampling"}
CONTINUOUS_KEYS = {
    "EDMEulerScheduler": EDM_KEYS, "FlowMatchEulerDiscreteScheduler": FLOW_KEYS,
    "EDMConsistencyScheduler": EDM_KEYS, "FlowMatchLCMScheduler": LCM_KEYS,
}  # fmt: skip

# diffusers' defaults for keys that are absent.
DEFAULTS = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
LATENT_DEFAULTS = DEFAULTS | {"beta_start": 0.00085, "beta_end": 0.012}
OTHER_DEFAULTS = {
    "HeunDiscreteScheduler": LATENT_DEFAULTS, "DPMSolverSDEScheduler": LATENT_DEFAULTS,
    "LCMScheduler": LATENT_DEFAULTS | {"beta_schedule": "scaled_linear"},
}  # fmt: skip

BETA_SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear_schedule,
    "scaled_linear": scaled_linear_schedule,
    "squaredcos_cap_v2": cosine_schedule,
    "sigmoid": sigmoid_schedule,
}


def schedule_to_config(schedule: AnySchedule) -> dict[str, Any]:
    """The schedule as keys of a scheduler_config.json.

    A beta schedule that all of diffusers' classes know is written as its name and numbers, others as trained_betas.
    """
    if not isinstance(schedule, Schedule):
        return continuous_to_config(schedule)
    rule = {"beta_schedule": schedule.name, "beta_start": schedule.beta_start, "beta_end": schedule.beta_end}
    if schedule.name not in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        rule = {"trained_betas": schedule.betas.tolist()}
    return {
        "num_train_timesteps": len(schedule),
        **{key: value for key, value in rule.items() if value is not None},
        "rescale_betas_zero_snr": False,
        "prediction_type": schedule.prediction_type,
    }


def schedule_from_config(config: dict[str, Any], knows_zero_snr: bool = True) -> AnySchedule:
    """The schedule that a scheduler_config.json describes; `sampler_from_config` reads the other keys.

    rescale_betas_zero_snr has no effect unless knows_zero_snr: not every class of diffusers implements it.
    Raises MinidiffError for a value that is out of range or not supported, by its name.
    """
    _check_is_object(config)
    if config.get("_class_name") in tuple(CONTINUOUS_KEYS):
        return continuous_from_config(config)
    if "_class_name" in config:  # a file of diffusers may lack keys that have their default
        config = OTHER_DEFAULTS.get(str(config["_class_name"]), DEFAULTS) | config
    prediction_type = config.get("prediction_type", "epsilon")
    check_prediction_type(prediction_type, PREDICTION_TYPES)
    rescale = config.get("rescale_betas_zero_snr", False)
    if not isinstance(rescale, bool):
        raise MinidiffError(f"rescale_betas_zero_snr must be true or false, not {rescale!r:.80}")
    if config.get("variance_type") == "learned":
        raise MinidiffError("variance_type 'learned' is not supported: use fixed_small, fixed_large or learned_range")
    if config.get("trained_betas") is not None:
        schedule = Schedule(_trained_betas(config), prediction_type)
    else:
        schedule = _named_schedule(config, prediction_type)
    return rescale_zero_terminal_snr(schedule) if rescale and knows_zero_snr else schedule


def continuous_to_config(schedule: EDM | Flow, sampler: str = "euler") -> dict[str, Any]:
    """A continuous schedule as a scheduler_config.json, of the class that samples it by Euler's method, or by
    consistency: for EDM diffusers has none then.
    """
    few = sampler == "consistency"
    if isinstance(schedule, Flow):
        name = "FlowMatchLCMScheduler" if few else "FlowMatchEulerDiscreteScheduler"
        return {"_class_name": name, **CONTINUOUS_KEYS[name]}
    name = "EDMConsistencyScheduler" if few else "EDMEulerScheduler"
    return {"_class_name": name, **EDM_KEYS, "sigma_min": schedule.sigma_min, "sigma_max": schedule.sigma_max}


def continuous_from_config(config: dict[str, Any]) -> EDM | Flow:
    """The inverse, for a `_class_name` of CONTINUOUS_KEYS. Raises MinidiffError for an unsupported value, by key."""
    for key, value in CONTINUOUS_KEYS[config["_class_name"]].items():
        if config.get(key, value) != value:
            raise MinidiffError(f"{key} = {config[key]!r:.80} is not supported: use {value!r}")
    if CONTINUOUS_KEYS[config["_class_name"]] is not EDM_KEYS:
        return Flow()
    return EDM(config.get("sigma_min", 0.002), config.get("sigma_max", 80.0))


def sampler_to_config(sampler: Sampler) -> dict[str, Any]:
    """The keys of a scheduler_config.json beside those of the schedule.

    eta, churn and as_diffusers have no key. Raises MinidiffError for settings that the sampler's class in diffusers
    lacks, and for a sampler that has none.
    """
    if sampler.name in WITHOUT_CLASS:
        raise MinidiffError(f"diffusers has no scheduler for {sampler.name}: save another sampler, and choose it later")
    scheduler = SCHEDULERS[_class_of(sampler.name)]
    settings = {
        "variance_type": sampler.variance,
        "clip_sample": sampler.clip is not None,
        "clip_sample_range": 1.0 if sampler.clip is None else sampler.clip,
        "set_alpha_to_one": sampler.clean_end,
        "final_sigmas_type": "zero" if sampler.clean_end else "sigma_min",
        "use_karras_sigmas": sampler.karras,
        "skip_prk_steps": True,
        "algorithm_type": next((key for key, name in ALGORITHMS.items() if name == sampler.name), None),
    }
    config = {"_class_name": _class_of(sampler.name), "timestep_spacing": sampler.spacing}
    config |= {"steps_offset": sampler.offset} | {key: settings[key] for key in scheduler.keys if key in settings}
    plain = Sampler()
    unwritten = ("eta", "churn", "churn_interval", "churn_noise", "as_diffusers")
    if sampler_from_config(config) != replace(sampler, **{field: getattr(plain, field) for field in unwritten}):
        raise MinidiffError(f"{sampler}: diffusers' {config['_class_name']} has no such settings")
    return config


def sampler_from_config(config: dict[str, Any], name: str | None = None) -> Sampler:
    """The sampler that a scheduler_config.json describes; `schedule_from_config` reads the betas.

    With a name, another sampler with the settings that both have, as diffusers' `from_config` does.
    Raises MinidiffError for an unsupported class or value, by its name.
    """
    _check_is_object(config)
    if name is not None:
        config = _of_class(config, _class_of(name))
    class_name = config.get("_class_name")
    if class_name not in tuple(SCHEDULERS):  # not in SCHEDULERS itself: JSON may hold a list here, which has no hash
        raise MinidiffError(f"scheduler class {class_name!r:.80} is not supported: use one of {', '.join(SCHEDULERS)}")
    scheduler = SCHEDULERS[class_name]
    settings = {key: config.get(key, default) for key, default in scheduler.keys.items()}
    for key in settings.keys() & VARIANTS:
        supported = key == "skip_prk_steps" or scheduler.keys[key]
        if settings[key] != supported:
            raise MinidiffError(f"{key} = {settings[key]!r:.80} is not supported: use {supported!r}")
    if _flag(settings, "clip_sample", False) and settings["clip_sample_range"] is None:
        raise MinidiffError("clip_sample_range must be a number, not None")
    try:
        return Sampler(
            name or _algorithm(settings) or scheduler.sampler,
            config.get("timestep_spacing", scheduler.spacing),
            config.get("steps_offset", 0),
            variance=settings.get("variance_type", "fixed_small"),
            clip=settings["clip_sample_range"] if _flag(settings, "clip_sample", False) else None,
            clean_end=_flag(settings, "set_alpha_to_one", True) and _final_sigma(settings) == "zero",
            karras=_flag(settings, "use_karras_sigmas", False),
        )
    except MinidiffError as error:
        field, _, rest = str(error).partition(" ")
        raise MinidiffError(f"{FIELD_KEYS.get(field, field)} {rest}") from None


def _check_is_object(config: Any) -> None:
    if not isinstance(config, dict):
        raise MinidiffError(f"a scheduler configuration must be keys and values, not {config!r:.80}")


def _named_schedule(config: dict[str, Any], prediction_type: str) -> Schedule:
    name = config.get("beta_schedule")
    if name not in tuple(BETA_SCHEDULES):  # not in the dict itself: JSON may hold a list here, which has no hash
        raise MinidiffError(f"beta_schedule {name!r:.80} is not supported: use one of {', '.join(BETA_SCHEDULES)}")
    keys = () if name == "squaredcos_cap_v2" else ("beta_start", "beta_end")
    numbers = {key: config.get(key) for key in keys}
    return BETA_SCHEDULES[name](config.get("num_train_timesteps"), **numbers, prediction_type=prediction_type)


def _trained_betas(config: dict[str, Any]) -> np.ndarray:
    betas, T = config["trained_betas"], config.get("num_train_timesteps")
    if not isinstance(betas, list) or not all(type(beta) in (int, float) and 0 < beta <= 1 for beta in betas):
        raise MinidiffError("trained_betas must be a list of numbers between 0 and 1")
    if len(betas) != T:
        raise MinidiffError(f"trained_betas has {len(betas)} entries, but num_train_timesteps is {T!r:.80}")
    return np.array(betas)


def _class_of(name: str) -> str:
    """diffusers' class of a sampler. Raises MinidiffError for an unknown sampler."""
    if name in WITHOUT_CLASS:
        return WITHOUT_CLASS[name]
    name = ALGORITHMS["dpmsolver++"] if name in ALGORITHMS.values() else name
    return next(known for known, scheduler in SCHEDULERS.items() if scheduler.sampler == Sampler(name).name)


def _of_class(config: dict[str, Any], class_name: str) -> dict[str, Any]:
    """The configuration for another class: what selects variants by the same key is as the class has it."""
    keys = SCHEDULERS[class_name].keys
    own = {key: keys[key] for key in ("solver_type", "algorithm_type") if key in keys}
    if config.get("timestep_spacing") == LOG_SIGMA and SCHEDULERS[class_name].sampler != "consistency":
        own["timestep_spacing"] = "trailing"  # that of a run: no other sampler has this spacing
    return config | own | {"_class_name": class_name, "skip_prk_steps": True}


def _algorithm(settings: dict[str, Any]) -> str | None:
    """The sampler of a DPMSolverMultistepScheduler's algorithm_type; None for other classes."""
    if "algorithm_type" not in settings:
        return None
    if settings["algorithm_type"] not in tuple(ALGORITHMS):
        known = " or ".join(ALGORITHMS)
        raise MinidiffError(f"algorithm_type = {settings['algorithm_type']!r:.80} is not supported: use {known}")
    return ALGORITHMS[settings["algorithm_type"]]


def _final_sigma(settings: dict[str, Any]) -> str:
    end = settings.get("final_sigmas_type", "zero")
    if end not in ("zero", "sigma_min"):
        raise MinidiffError(f"final_sigmas_type {end!r:.80} is not supported: use zero or sigma_min")
    return end


def _flag(settings: dict[str, Any], key: str, absent: bool) -> bool:
    value = settings.get(key, absent)
    if not isinstance(value, bool):
        raise MinidiffError(f"{key} must be true or false, not {value!r:.80}")
    return value
