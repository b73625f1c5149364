"""The U-Net's configuration: bad values are named, diffusers' files are read, defaults follow the image size."""

import json
import math
from dataclasses import fields, replace

import pytest
from diffusers import UNet2DModel

from minidiff.errors import MinidiffError
from minidiff.models.config import UNetConfig
from minidiff.models.default_configs import default_config

GOOD = UNetConfig(
    sample_size=(8, 16),
    in_channels=1,
    out_channels=2,
    block_out_channels=(16, 32),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=8,
    num_class_embeds=11,
    dropout=0.1,
)

BAD = {
    "sample_size": [0, 1.5, True, "32", (8,), (8, 16, 3), (8, -1), [8, "16"]],
    "in_channels": [0, -1, 2.0, "3", None, True, 10**9],
    "out_channels": [0, None, [3]],
    "block_out_channels": [(), 32, "16", None, (16, 0), (16, 1.0), (16, None), (16,) * 13, (16, 10**9)],
    "down_block_types": [
        ("DownBlock2D",), ("DownBlock2D",) * 3, "DownBlock2D", None, ("DownBlock2D", "KDownBlock2D"),
        ("DownBlock2D", None), ("DownBlock2D", ["AttnDownBlock2D"]), ("DownBlock2D", "UpBlock2D"),
    ],
    "up_block_types": [("UpBlock2D",), None, ("UpBlock2D", "DownBlock2D"), ("UpBlock2D", 3)],
    "layers_per_block": [0, -1, 1.0, None, True, 10**6],
    "norm_num_groups": [0, None, 3, 64, 8.0],
    "norm_eps": [0, -1e-5, 2.0, math.nan, math.inf, None, "1e-5", True],
    "attn_norm_num_groups": [0, -1, 3, 64, 8.0, "8", True],
    "downsample_type": ["fir", None, True, 1, ("conv", "resnet"), ["conv"]],
    "upsample_type": ["fir", None, "CONV", 0, ["resnet"]],
    "resnet_time_scale_shift": ["spatial", "ada_group", None, True, ["default"]],
    "mid_block_scale_factor": [0, -1, None, math.nan, math.inf, "1", True, 1e9],
    "center_input_sample": [0, 1, None, "true"],
    "time_embedding_dim": [0, -4, 32.0, "32", True, 10**9],
    "attention_head_dim": [0, 5, -8, 8.0, "8", 64],
    "downsample_padding": [-1, 2, None, True, 0.0],
    "flip_sin_to_cos": [0, 1, None, "true"],
    "freq_shift": [-1, 2, None, math.nan, "0", True],
    "dropout": [-0.1, 1.0, math.nan, None, "0.1", False],
    "add_attention": [0, 1, None],
    "num_class_embeds": [0, -1, 2.5, "10", True, 10**9],
}  # fmt: skip


def test_every_key_has_bad_values():
    assert set(BAD) == {field.name for field in fields(UNetConfig)}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_named(name, value):
    with pytest.raises(MinidiffError, match=f"^UNet2DModel configuration: {name} = .* is not supported: [^\n]+$"):
        replace(GOOD, **{name: value})


def test_a_width_too_small_for_freq_shift_is_refused():
    """Two channels with freq_shift 1 would divide by zero."""
    with pytest.raises(MinidiffError, match="freq_shift = 1"):
        UNetConfig(block_out_channels=(2,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
                   norm_num_groups=1, add_attention=False, freq_shift=1)  # fmt: skip


def test_attention_head_dim_must_divide_the_widths_with_attention_only():
    narrow = replace(GOOD, block_out_channels=(24, 32), attention_head_dim=16)
    with pytest.raises(MinidiffError, match="attention_head_dim = 16 .* it must divide the width 24"):
        replace(narrow, down_block_types=("AttnDownBlock2D", "DownBlock2D"))
    with pytest.raises(MinidiffError, match="attention_head_dim = 16 .* it must divide the width 24"):
        replace(narrow, up_block_types=("UpBlock2D", "AttnUpBlock2D"))
    with pytest.raises(MinidiffError, match="attention_head_dim = 24 .* it must divide the width 32"):
        replace(GOOD, attention_head_dim=24, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)


def test_lists_become_tuples():
    values = {"sample_size": [8, 16], "block_out_channels": [16, 32]}
    assert replace(GOOD, **values) == GOOD
    assert hash(replace(GOOD, **values)) == hash(GOOD)


@pytest.mark.parametrize(
    "cfg", [GOOD, replace(GOOD, sample_size=None, num_class_embeds=None), default_config((28, 28, 1))]
)
def test_json_round_trip(cfg):
    assert UNetConfig.of(json.loads(json.dumps(cfg.to_dict()))) == cfg


def test_diffusers_reads_ours_and_we_read_diffusers():
    """diffusers keeps every value of our dictionary, and we read all keys that it writes."""
    net = UNet2DModel.from_config(GOOD.to_dict())
    written = json.loads(net.to_json_string())
    assert {name: written[name] for name in GOOD.to_dict()} == json.loads(json.dumps(GOOD.to_dict()))
    assert UNetConfig.of(written) == GOOD


def test_defaults_are_those_of_diffusers():
    """The keys in FIXED too: the only supported value is the default."""
    import inspect

    theirs = {name: p.default for name, p in inspect.signature(UNet2DModel).parameters.items()}
    ours = {field.name: field.default for field in fields(UNetConfig)}
    assert {**ours, **UNetConfig.FIXED, "num_train_timesteps": None} == theirs


@pytest.mark.parametrize(
    "change, message",
    [
        ({"act_fn": "gelu"}, "act_fn = 'gelu' is not supported: only 'silu' is"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"mid_block_type": None}, "mid_block_type"),
        ({"new_key": 1}, "new_key = 1 is not supported: the key is not known"),
        ({"new\nkey": "two\nlines" * 100}, r"new\\nkey = 'two\\nlines[^\n]{,200}\.\.\. is not supported"),
        ({"_class_name": "UNet2DConditionModel"}, "_class_name = 'UNet2DConditionModel'"),
        ({"layers_per_block": "many"}, "layers_per_block = 'many'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, message):
    with pytest.raises(MinidiffError, match=message):
        UNetConfig.of(GOOD.to_dict() | change)


@pytest.mark.parametrize("values", [None, [], "config", 3])
def test_a_configuration_is_an_object(values):
    with pytest.raises(MinidiffError, match="UNet2DModel configuration: expected keys and values, found"):
        UNetConfig.of(values)


def test_keys_that_begin_with_an_underscore_are_ignored():
    assert UNetConfig.of(GOOD.to_dict() | {"_diffusers_version": "0.42.1", "_name_or_path": "x"}) == GOOD


@pytest.mark.parametrize(
    "shape, downsamples",
    [
        ((32, 32, 3), 3), ((64, 64, 3), 3), ((28, 28, 1), 2), ((16, 16, 3), 2), ((8, 8, 1), 1), ((8, 16, 1), 1),
        ((30, 30, 3), 1), ((32, 36, 3), 2), ((33, 32, 3), 0), ((7, 7, 1), 0), ((4, 4, 1), 0), ((1, 1, 1), 0),
    ],
)  # fmt: skip
def test_the_default_s_number_of_levels(shape, downsamples):
    H, W, C = shape
    cfg = default_config(shape, num_class_embeds=3)
    assert len(cfg.block_out_channels) == downsamples + 1
    assert cfg.block_out_channels == (32, 64, 96, 96)[: downsamples + 1]
    assert cfg.sample_size == (H if H == W else (H, W))
    assert (cfg.in_channels, cfg.out_channels, cfg.num_class_embeds) == (C, C, 3)
    assert cfg.down_block_types[-1] == "AttnDownBlock2D" and cfg.up_block_types[0] == "AttnUpBlock2D"
    assert "AttnDownBlock2D" not in cfg.down_block_types[:-1] and "AttnUpBlock2D" not in cfg.up_block_types[1:]


def test_the_default_s_width_must_be_divisible_into_groups():
    assert default_config((8, 8, 3), width=48).block_out_channels == (48, 96)
    for width in (20, 0, -8, 4104):
        with pytest.raises(MinidiffError, match=f"width {width}: give a multiple of 8, from 8 to 4096"):
            default_config((8, 8, 3), width=width)


def test_the_default_may_have_another_depth_that_goes_with_the_image():
    deep = default_config((32, 32, 3), width=16, depth=5)
    assert deep.block_out_channels == (16, 32, 48, 48, 48) and deep.down_block_types[-1] == "AttnDownBlock2D"
    assert default_config((33, 32, 1), depth=1) == default_config((33, 32, 1))
    assert default_config((32, 32, 1), depth=4) == default_config((32, 32, 1))
    for shape, depth, most in (((32, 32, 3), 7, 6), ((28, 32, 1), 4, 3), ((7, 7, 1), 2, 1), ((8, 8, 1), 0, 4)):
        size = f"{shape[1]}x{shape[0]}"
        with pytest.raises(MinidiffError, match=f"depth {depth}: does not go with {size} pixels; give 1 to {most} lev"):
            default_config(shape, depth=depth)
