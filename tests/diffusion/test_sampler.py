"""A sampler and its settings: what is refused, and how a scheduler_config.json is read and written."""

import json
import math

import pytest

from minidiff.diffusion.sampler import SAMPLERS, SCHEDULERS, Sampler, sampler_from_config, sampler_to_config
from minidiff.errors import MinidiffError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "eulr"}, "sampler 'eulr' is unknown: use one of ddpm, ddim, pndm"),
        ({"name": None}, "sampler None is unknown"),
        ({"spacing": "even"}, "spacing 'even' is unknown: use one of trailing, leading, linspace"),
        ({"spacing": ["leading"]}, "spacing .* is unknown"),
        ({"variance": "learned"}, "variance 'learned' is unknown: use one of fixed_small, fixed_large"),
        ({"offset": -1}, "offset must be a whole number from 0 to 1000"),
        ({"offset": 0.5}, "offset must be a whole number"),
        ({"offset": True}, "offset must be a whole number"),
        ({"clip": 0.0}, "clip must be a number above 0, up to a million, or None"),
        ({"clip": math.nan}, "clip must be a number above 0, up to a million, or None"),
        ({"clip": "1"}, "clip must be a number above 0, up to a million, or None"),
        ({"clean_end": 1}, "clean_end must be true or false"),
        ({"karras": None}, "karras must be true or false"),
        ({"as_diffusers": "yes"}, "as_diffusers must be true or false"),
        ({"eta": -0.1}, "eta must be from 0 to 1"),
        ({"eta": 1.1}, "eta must be from 0 to 1"),
        ({"eta": math.nan}, "eta must be from 0 to 1"),
        ({"eta": "0"}, "eta must be from 0 to 1"),
        ({"eta": 0.5, "name": "ddpm"}, "eta = 0.5 is for the ddim sampler: ddpm has none"),
        ({"karras": True, "name": "pndm"}, "karras is for euler, heun, dpmpp_2m"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(change, message):
    with pytest.raises(MinidiffError, match=message):
        Sampler(**change)


@pytest.mark.parametrize("name", SAMPLERS)
def test_written_and_read_again(name):
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
    ],
)
def test_settings_survive(sampler):
    assert sampler_from_config(sampler_to_config(sampler)) == sampler


@pytest.mark.parametrize("sampler", [Sampler("pndm"), Sampler("euler"), Sampler("heun", clean_end=False)])
def test_settings_that_the_class_in_diffusers_has_not_are_not_written(sampler):
    with pytest.raises(MinidiffError, match="has no such settings"):
        sampler_to_config(sampler)


def test_only_the_keys_of_the_class_are_written():
    assert sampler_to_config(Sampler()) == {
        "_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "steps_offset": 0, "clip_sample": True,
        "clip_sample_range": 1.0, "set_alpha_to_one": True,
    }  # fmt: skip
    assert sampler_to_config(Sampler(eta=0.5, as_diffusers=True)) == sampler_to_config(Sampler())


def test_what_a_class_takes_for_keys_that_are_absent():
    def read(kind, **config):
        return sampler_from_config({"_class_name": kind, **config})

    assert read("DDPMScheduler") == Sampler("ddpm", "leading")
    assert read("DDIMScheduler") == Sampler("ddim", "leading")
    assert read("PNDMScheduler", skip_prk_steps=True) == Sampler("pndm", "leading", clip=None, clean_end=False)
    assert read("EulerDiscreteScheduler") == Sampler("euler", "linspace", clip=None)
    assert read("EulerAncestralDiscreteScheduler") == Sampler("euler_ancestral", "linspace", clip=None)
    assert read("HeunDiscreteScheduler") == Sampler("heun", "linspace", clip=None)
    assert read("DPMSolverMultistepScheduler") == Sampler("dpmpp_2m", "linspace", clip=None)


def test_another_sampler_takes_what_it_knows():
    """As diffusers' from_config does."""
    config = {"_class_name": "PNDMScheduler", "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
    assert sampler_from_config(config, "ddim") == Sampler("ddim", "leading", 1, clip=None, clean_end=False)
    assert sampler_from_config(config, "euler") == Sampler("euler", "linspace", 1, clip=None)
    third = {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3, "timestep_spacing": "trailing"}
    assert sampler_from_config(third, "ddim") == Sampler("ddim", "trailing")  # which has no order
    assert sampler_from_config(config, "pndm").name == "pndm"  # which needs no skip_prk_steps when asked for by name
    with pytest.raises(MinidiffError, match="sampler 'unipc' is unknown"):
        sampler_from_config(config, "unipc")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UniPCMultistepScheduler"}, "scheduler class 'UniPCMultistepScheduler' is not supported"),
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
        ({"variance_type": "learned_range"}, "variance_type 'learned_range' is unknown"),
        ({"_class_name": "DDIMScheduler", "set_alpha_to_one": 1}, "set_alpha_to_one must be true or false"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "solver_order = 3 is not supported: use 2"),
        ({"_class_name": "EulerDiscreteScheduler", "final_sigmas_type": "one"}, "final_sigmas_type 'one' is not"),
        ({"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True}, "use_beta_sigmas = True is not supported"),
    ],
)
def test_a_configuration_that_is_not_built_here_is_refused_by_name(change, message):
    with pytest.raises(MinidiffError, match=message):
        sampler_from_config({"_class_name": "DDPMScheduler"} | change)


@pytest.mark.parametrize("config", [None, [], "DDPMScheduler"])
def test_a_configuration_that_is_none(config):
    with pytest.raises(MinidiffError, match="must be keys and values"):
        sampler_from_config(config)


def test_every_sampler_has_its_class():
    assert list(dict.fromkeys(kind.sampler for kind in SCHEDULERS.values())) == list(SAMPLERS)
