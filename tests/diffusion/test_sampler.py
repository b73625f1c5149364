"""A sampler and its settings: which values are refused."""

import math

import pytest

from minidiff.diffusion.sampler import Sampler
from minidiff.errors import MinidiffError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "eulr"}, "sampler 'eulr' is unknown: use one of ddpm, ddim, pndm"),
        ({"name": None}, "sampler None is unknown"),
        ({"spacing": "even"}, "spacing 'even' is unknown: use one of trailing, leading, linspace"),
        ({"spacing": ["leading"]}, "spacing .* is unknown"),
        ({"variance": "learned"}, "variance 'learned' is unknown: use one of fixed_small, fixed_large, learned_range"),
        ({"variance": "learned_range"}, "variance learned_range is for the ddpm sampler: ddim has none"),
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
        ({"churn": -1.0, "name": "heun"}, "churn must be a number from 0 to a million"),
        ({"churn": math.nan, "name": "heun"}, "churn must be a number from 0 to a million"),
        ({"churn": 40.0}, "churn = 40 is for euler and heun: ddim has none"),
        ({"churn_interval": (2.0, 1.0)}, "churn_interval must be two sigmas"),
        ({"churn_interval": 1.0}, "churn_interval must be two sigmas"),
        ({"churn_interval": (0.1, "1")}, "churn_interval must be two sigmas"),
        ({"churn_noise": 0.0}, "churn_noise must be a number above 0, up to 10"),
    ],
)
def test_invalid_settings_are_refused_by_name(change, message):
    with pytest.raises(MinidiffError, match=message):
        Sampler(**change)
