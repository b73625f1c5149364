"""The solutions of chapter 5 against the library's network: its shapes, and the reach of its gradient."""

import numpy as np
import pytest

import minidiff as md
from minidiff.engine import functional as F
from minidiff.engine.tensor import Tensor
from minidiff.learn.chapters.unet import EXERCISES, receptive_field, unet_shapes
from minidiff.models import unet as unet_module
from minidiff.models.blocks import DownBlock, MidBlock, UpBlock


@pytest.mark.parametrize(("shape", "depth"), [((16, 32, 3), 3), ((8, 8, 1), 1), ((16, 16, 3), 2)])
def test_shapes_are_those_of_the_network(shape, depth, monkeypatch):
    unet = md.UNet(md.default_config(shape, width=8, depth=depth), None, "numpy")
    found = []
    for block in (DownBlock, MidBlock, UpBlock):
        record(block, "__call__", monkeypatch, found)
    record(unet, "conv_in", monkeypatch, found)
    record(unet_module, "norm_conv", monkeypatch, found)  # the last convolution
    unet(np.zeros((1, *shape), np.float32), np.array([3]))
    assert unet_shapes(shape, unet.config.block_out_channels).tolist() == found


def record(owner, name, monkeypatch, found):
    """Append the shape (H, W, C) of each output of a function to `found`."""
    function = getattr(owner, name)

    def recorded(*args, **kwargs):
        y = function(*args, **kwargs)
        found.append(list(y.shape[1:]))
        return y

    monkeypatch.setattr(owner, name, recorded)


def reach(layers, place):
    """The number of input pixels, of a line of 200, on which the output at `place` depends."""
    numpy = md.get_backend("numpy")
    x = Tensor(np.ones((1, 1, 200, 1)), numpy, requires_grad=True)
    y = x
    for kernel, stride in layers:
        if stride == 0.5:
            y = F.upsample_nearest(y, (1, 2 * y.shape[2]))
        else:
            left = kernel // 2
            weight = Tensor(np.ones((1, 1, kernel, 1)), numpy)
            y = F.conv2d(y, weight, stride=int(stride), pad=(0, 0, left, left))
            y = y if stride == 1 else F.Slice((slice(None), slice(1)))(y)
    dy = np.zeros(y.shape)
    dy[0, 0, y.shape[2] // 2 + place] = 1
    y.backward(dy)
    return np.count_nonzero(x.grad)


@pytest.mark.parametrize("seed", range(5))
def test_receptive_field_is_the_reach_of_the_gradient(seed):
    for (layers,) in EXERCISES[1].inputs(np.random.default_rng(seed)):
        r, _ = receptive_field(layers)
        assert [reach(layers, place) for place in range(4)] == [r] * 4


def test_receptive_field_gives_the_stride_of_the_output():
    assert receptive_field([(3, 2.0), (3, 2.0), (1, 0.5)]) == (7, 2.0)
