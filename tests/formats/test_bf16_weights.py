"""The backend numba-bf16: weights of convolutions and linear layers in bfloat16, and networks that sample with them."""

import numpy as np
import pytest
import torch
from minidiff_kernels.reference.bfloat16 import round_to_bfloat16
from small_pipeline import pipeline
from small_runs import network, unet_of

import minidiff as md
from minidiff.engine.nn import Conv2d, Linear
from minidiff.errors import MinidiffError
from minidiff.formats import networks
from minidiff.models.lora import Update, merged

BACKEND = "numba-bf16"


def linear():
    return Linear(32, 48, np.random.default_rng(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Stable Diffusion folder with weights in float16."""
    folder = tmp_path_factory.mktemp("half")
    pipeline().to(torch.float16).save_pretrained(folder)
    return folder


def test_moving_a_layer_rounds_its_weight():
    """The memory is half, and what `numpy` returns is the rounded weight in its own order."""
    layer = linear()
    moved = layer.to(BACKEND)
    assert moved.weight.is_packed and moved.weight.data.nbytes == layer.weight.data.nbytes // 2
    assert moved.bias is not None and moved.bias.data.dtype == np.float32
    np.testing.assert_array_equal(moved.weight.numpy(), round_to_bfloat16(layer.weight.data), strict=True)
    np.testing.assert_array_equal(moved.state_dict()["weight"], moved.weight.numpy())
    back = moved.to("numpy")
    np.testing.assert_array_equal(back.weight.data, moved.weight.numpy(), strict=True)
    np.testing.assert_array_equal(back.to(BACKEND).weight.data, moved.weight.data, strict=True)


def test_channels_that_fill_no_panels_stay_float32():
    layer = Conv2d(32, 3, 3, np.random.default_rng(0)).to(BACKEND)
    assert not layer.weight.is_packed and layer.weight.requires_grad


def test_other_weights_are_rounded_into_the_same_memory():
    layer, other = linear().to(BACKEND), Linear(32, 48, np.random.default_rng(1))
    data = layer.weight.data
    layer.load_state_dict(other.state_dict())
    assert layer.weight.data is data
    np.testing.assert_array_equal(layer.weight.numpy(), round_to_bfloat16(other.weight.data))


def test_a_lora_is_merged_and_the_same_bits_come_back():
    layer = linear().to(BACKEND)
    data, before = layer.weight.data, layer.weight.data.copy()
    rng = np.random.default_rng(1)
    update = Update(*(rng.standard_normal(shape, dtype=np.float32) for shape in ((4, 32), (48, 4))), 4.0)
    weight = layer.weight.numpy()
    with merged({"layer": layer}, [({"layer": update}, 0.5)]):
        np.testing.assert_array_equal(
            layer.weight.numpy(), round_to_bfloat16(weight + np.float32(0.5) * update.product())
        )
    assert layer.weight.data is data
    np.testing.assert_array_equal(data, before)


def test_training_is_refused():
    unet = unet_of(network(), backend=BACKEND)
    with pytest.raises(MinidiffError, match="^backend numba-bf16 is for sampling, not for training: choose numba$"):
        md.AdamW(unet.parameters(), lr=1e-3)


def test_a_prediction_is_near_float32_s():
    """Each of its dozen layers rounds to 2^-8; a float32 result would be within 1e-6."""
    config = network(block_out_channels=(32,), norm_num_groups=8)
    unet = unet_of(config)
    x_t = np.random.default_rng(0).standard_normal((2, *unet.image_shape), dtype=np.float32)
    want, got = (unet.to(name)(x_t, np.array([3, 700])).numpy() for name in ("numpy", BACKEND))
    error = np.sqrt(np.square(got - want).mean() / np.square(want).mean())
    assert 1e-4 < error < 12**0.5 * 2**-8


@pytest.mark.parametrize("least", [0, 50_000_000])
def test_float16_files_are_rounded_as_they_are_read(folder, monkeypatch, least):
    """Those that are not packed stay float16, if a large network's do."""
    monkeypatch.setattr(networks, "KEPT_HALF", least)
    opened = md.open_pipeline(folder, BACKEND)
    exact = dict(md.open_pipeline(folder, "numpy").unet.named_parameters())
    found = dict(opened.unet.named_parameters())
    assert any(p.is_packed for p in found.values())
    for name, p in found.items():
        if p.is_packed:
            np.testing.assert_array_equal(p.numpy(), round_to_bfloat16(exact[name].data.astype(np.float32)), name)
        else:
            assert p.data.dtype == (np.float32 if least else np.float16), name
