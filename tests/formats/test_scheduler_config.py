"""A scheduler_config.json read and written: schedules, samplers, and what is refused."""

import dataclasses
import json
import math

import numpy as np
import pytest

from minidiff.diffusion import schedule as s
from minidiff.diffusion.continuous import EDM, Flow
from minidiff.diffusion.sampler import SAMPLERS, Sampler
from minidiff.errors import MinidiffError
from minidiff.formats.schedulers import (
    ALGORITHMS,
    SCHEDULERS,
    WITHOUT_CLASS,
    sampler_from_config,
    sampler_to_config,
    schedule_from_config,
    schedule_to_config,
)

CONTINUOUS = pytest.mark.parametrize("schedule", [EDM(), Flow()], ids=["edm", "flow"])
SCHEDULES = [
    s.linear_schedule(),
    s.linear_schedule(7, 0.001, 0.3, "sample"),
    s.scaled_linear_schedule(prediction_type="v_prediction"),
    s.cosine_schedule(50),
    s.Schedule(np.array([0.1, 0.25, 0.123456789])),
    s.rescale_zero_terminal_snr(s.scaled_linear_schedule(100, prediction_type="v_prediction")),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: f"{schedule.name}-{len(schedule)}")
def test_a_schedule_is_written_and_read_back(schedule):
    config = json.loads(json.dumps(schedule_to_config(schedule)))
    again = schedule_from_config(config)
    for field in dataclasses.fields(s.Schedule):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(schedule, field.name))
    assert ("trained_betas" in config) == (schedule.name == "trained")


def test_a_beta_schedule_of_few_classes_is_written_as_trained_betas():
    schedule = s.sigmoid_schedule(50, 0.01, 0.2)
    again = schedule_from_config(json.loads(json.dumps(schedule_to_config(schedule))))
    assert again.name == "trained"
    np.testing.assert_array_equal(again.betas, schedule.betas)


def test_default_schedules_of_diffusers_classes():
    """A configuration without a class name has no defaults."""
    schedule = schedule_from_config({"_class_name": "DDIMScheduler"})
    np.testing.assert_array_equal(schedule.betas, s.linear_schedule().betas)
    schedule = schedule_from_config({"_class_name": "HeunDiscreteScheduler"})
    np.testing.assert_array_equal(schedule.betas, s.linear_schedule(1000, 0.00085, 0.012).betas)
    with pytest.raises(MinidiffError, match="beta_schedule None"):
        schedule_from_config({})


def test_rescale_betas_zero_snr():
    config = schedule_to_config(s.linear_schedule(20, prediction_type="v_prediction"))
    schedule = schedule_from_config(config | {"rescale_betas_zero_snr": True})
    assert schedule.alphas_cumprod[-1] == 0 and schedule.name == "trained"


def test_without_prediction_type_it_is_epsilon():
    config = {"num_train_timesteps": 5, "beta_schedule": "linear", "beta_start": 0.1, "beta_end": 0.2}
    assert schedule_from_config(config).prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta_schedule": "laplace"}, "beta_schedule 'laplace'.*squaredcos_cap_v2"),
        ({"beta_schedule": "trained"}, "beta_schedule 'trained'"),
        ({"beta_schedule": None}, "beta_schedule None"),
        ({"beta_schedule": ["linear"]}, "beta_schedule"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps"),
        ({"num_train_timesteps": 1e3}, "num_train_timesteps"),
        ({"num_train_timesteps": 10**15}, "num_train_timesteps"),
        ({"num_train_timesteps": [10]}, "num_train_timesteps"),
        ({"beta_start": None}, "beta_start"),
        ({"beta_end": "0.02"}, "beta_end"),
        ({"beta_end": math.nan}, "beta_end"),
        ({"beta_start": [0.1]}, "beta_start"),
        ({"prediction_type": "flow"}, "prediction_type 'flow'"),
        ({"prediction_type": None}, "prediction_type None"),
        ({"variance_type": "learned"}, "variance_type 'learned' is not supported"),
        ({"rescale_betas_zero_snr": "yes"}, "rescale_betas_zero_snr"),
        ({"rescale_betas_zero_snr": True}, "'epsilon'"),
        ({"trained_betas": "0.1"}, "trained_betas"),
        ({"trained_betas": {}}, "trained_betas"),
        ({"trained_betas": [0.1, "0.2"]}, "trained_betas"),
        ({"trained_betas": [0.1, [0.2]]}, "trained_betas"),
        ({"trained_betas": [0.1, True]}, "trained_betas"),
        ({"trained_betas": [0.1, math.nan]}, "trained_betas"),
        ({"trained_betas": [0.1, 10**400]}, "trained_betas"),
        ({"trained_betas": [0.1, 0.2]}, "2 entries, but num_train_timesteps is 10"),
        ({"trained_betas": []}, "0 entries"),
    ],
)
def test_an_invalid_schedule_is_refused_in_one_line(change, message):
    config = schedule_to_config(s.linear_schedule(10)) | change
    with pytest.raises(MinidiffError, match=message) as error:
        schedule_from_config(config)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


@pytest.mark.parametrize("config", [None, [], "linear", 3])
def test_a_schedule_configuration_must_be_an_object(config):
    with pytest.raises(MinidiffError, match="keys and values"):
        schedule_from_config(config)


@CONTINUOUS
def test_a_continuous_schedule_is_written_and_read_back(schedule):
    assert schedule_from_config(schedule_to_config(schedule)) == schedule
    assert schedule_from_config({"_class_name": schedule_to_config(schedule)["_class_name"]}) == schedule


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 1.0}, "sigma_data = 1.0 is not supported: use 0.5"),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": "0"}, "sigma_min, sigma_max"),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": 90.0}, "0 < sigma_min < sigma_max"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "shift = 3.0 is not supported: use 1.0"),
        ({"prediction_type": "flow", "beta_schedule": "linear"}, "prediction_type 'flow' is not supported"),
    ],
)
def test_unsupported_continuous_schedules_are_refused(config, message):
    with pytest.raises(MinidiffError, match=message):
        schedule_from_config(config)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in WITHOUT_CLASS])
def test_a_sampler_is_written_and_read_back(name):
    sampler = Sampler(name, spacing="leading", offset=1, clip=None)
    assert sampler_from_config(json.loads(json.dumps(sampler_to_config(sampler)))) == sampler


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler("ddpm", variance="fixed_large", clip=0.5),
        Sampler("ddim", clean_end=False),
        Sampler("pndm", clip=None, clean_end=False),
        Sampler("euler", clip=None, clean_end=False, karras=True),
        Sampler("heun", karras=True),
        Sampler("dpmpp_2m", clip=None, karras=True),
        Sampler("dpmpp_2m_sde", clip=None, karras=True, clean_end=False),
        Sampler("dpmpp_sde", clip=None, karras=True),
        Sampler("unipc", clip=None, karras=True, clean_end=False),
    ],
)
def test_settings_are_written_and_read_back(sampler):
    assert sampler_from_config(sampler_to_config(sampler)) == sampler


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler("pndm"), Sampler("euler"), Sampler("heun", clean_end=False), Sampler("unipc"),
        Sampler("dpmpp_sde", clip=None, clean_end=False),
    ],
)  # fmt: skip
def test_settings_that_the_class_in_diffusers_lacks_are_refused(sampler):
    with pytest.raises(MinidiffError, match="has no such settings"):
        sampler_to_config(sampler)


def test_a_sampler_without_a_class_in_diffusers_is_not_written():
    with pytest.raises(MinidiffError, match="diffusers has no scheduler for euler_maruyama: save another sampler"):
        sampler_to_config(Sampler("euler_maruyama", clip=None))


def test_only_the_keys_of_the_class_are_written():
    assert sampler_to_config(Sampler()) == {
        "_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "steps_offset": 0, "clip_sample": True,
        "clip_sample_range": 1.0, "set_alpha_to_one": True,
    }  # fmt: skip
    assert sampler_to_config(Sampler(eta=0.5, as_diffusers=True)) == sampler_to_config(Sampler())
    churned = Sampler("heun", churn=40.0, churn_interval=(0.05, 50.0), churn_noise=1.003)
    assert sampler_to_config(churned) == sampler_to_config(Sampler("heun"))
    assert sampler_to_config(Sampler("dpmpp_2m_sde", clip=None)) == {
        "_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "trailing", "steps_offset": 0,
        "algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "zero", "use_karras_sigmas": False,
    }  # fmt: skip


def test_default_settings_of_diffusers_classes():
    def read(class_name, **config):
        return sampler_from_config({"_class_name": class_name, **config})

    assert read("DDPMScheduler") == Sampler("ddpm", "leading")
    assert read("DDIMScheduler") == Sampler("ddim", "leading")
    assert read("PNDMScheduler", skip_prk_steps=True) == Sampler("pndm", "leading", clip=None, clean_end=False)
    assert read("EulerDiscreteScheduler") == Sampler("euler", "linspace", clip=None)
    assert read("EulerAncestralDiscreteScheduler") == Sampler("euler_ancestral", "linspace", clip=None)
    assert read("HeunDiscreteScheduler") == Sampler("heun", "linspace", clip=None)
    assert read("DPMSolverMultistepScheduler") == Sampler("dpmpp_2m", "linspace", clip=None)
    sde = read("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++")
    assert sde == Sampler("dpmpp_2m_sde", "linspace", clip=None)
    assert read("DPMSolverSDEScheduler") == Sampler("dpmpp_sde", "linspace", clip=None)
    assert read("UniPCMultistepScheduler") == Sampler("unipc", "linspace", clip=None)


def test_another_sampler_keeps_the_settings_it_shares():
    """As diffusers' from_config does."""
    config = {"_class_name": "PNDMScheduler", "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
    assert sampler_from_config(config, "ddim") == Sampler("ddim", "leading", 1, clip=None, clean_end=False)
    assert sampler_from_config(config, "euler") == Sampler("euler", "linspace", 1, clip=None)
    third = {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3, "timestep_spacing": "trailing"}
    assert sampler_from_config(third, "ddim") == Sampler("ddim", "trailing")  # which has no order
    assert sampler_from_config(config, "pndm").name == "pndm"  # which needs no skip_prk_steps if named
    assert sampler_from_config(config, "euler_maruyama") == Sampler("euler_maruyama", "linspace", 1, clip=None)
    sde = {"_class_name": "DPMSolverMultistepScheduler", "solver_type": "midpoint", "algorithm_type": "sde-dpmsolver++"}
    for name in ("unipc", "dpmpp_2m", "dpmpp_2m_sde"):  # whose solver_type and algorithm_type are their own
        assert sampler_from_config(sde, name) == Sampler(name, "linspace", clip=None)
    with pytest.raises(MinidiffError, match="sampler 'deis' is unknown"):
        sampler_from_config(config, "deis")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "DEISMultistepScheduler"}, "scheduler class 'DEISMultistepScheduler' is not supported"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"}, "solver_type = 'bh1' is not .* use 'bh2'"),
        ({"_class_name": "UniPCMultistepScheduler", "disable_corrector": [0]}, "disable_corrector = .0. is not supp"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"},
            "algorithm_type = 'dpmsolver' ",
        ),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": []}, "algorithm_type = .. is not supported"),
        ({"_class_name": ["DDPMScheduler"]}, "scheduler class .* is not supported"),
        ({"_class_name": None}, "scheduler class None is not supported"),
        ({"_class_name": "PNDMScheduler"}, "skip_prk_steps = False is not supported: use True"),
        ({"thresholding": True}, "thresholding = True is not supported: use False"),
        ({"timestep_spacing": "even"}, "timestep_spacing 'even' is unknown"),
        ({"steps_offset": "1"}, "steps_offset must be a whole number"),
        ({"clip_sample": "yes"}, "clip_sample must be true or false"),
        ({"clip_sample_range": -1}, "clip_sample_range must be a number above 0"),
        ({"clip_sample_range": None}, "clip_sample_range must be a number"),
        ({"clip_sample_range": math.inf}, "clip_sample_range must be a number"),
        ({"clip_sample_range": True}, "clip_sample_range must be a number"),
        ({"variance_type": "fixed_small_log"}, "variance_type 'fixed_small_log' is unknown"),
        ({"_class_name": "DDIMScheduler", "set_alpha_to_one": 1}, "set_alpha_to_one must be true or false"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "solver_order = 3 is not supported: use 2"),
        ({"_class_name": "EulerDiscreteScheduler", "final_sigmas_type": "one"}, "final_sigmas_type 'one' is not"),
        ({"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True}, "use_beta_sigmas = True is not supported"),
    ],
)
def test_an_unsupported_sampler_is_refused_by_name(change, message):
    with pytest.raises(MinidiffError, match=message):
        sampler_from_config({"_class_name": "DDPMScheduler"} | change)


@pytest.mark.parametrize("config", [None, [], "DDPMScheduler"])
def test_a_sampler_configuration_must_be_an_object(config):
    with pytest.raises(MinidiffError, match="must be keys and values"):
        sampler_from_config(config)


def test_every_sampler_has_its_class():
    named = {scheduler.sampler for scheduler in SCHEDULERS.values()} | set(ALGORITHMS.values())
    assert set(WITHOUT_CLASS) == {"euler_maruyama"} == set(SAMPLERS) - named and named < set(SAMPLERS)
