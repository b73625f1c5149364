"""Muon and AdamW over one set of flat buffers, against torch's two optimisers."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from against_torch import CONV_FLOOR, draw, rms

from minidiff.engine.muon import Muon, is_hidden
from minidiff.engine.nn import Parameter
from minidiff.engine.optim import AdamW
from minidiff.models.config import UNetConfig
from minidiff.models.mlp import MLP, MLPConfig
from minidiff.models.unet import UNet

SHAPES = {
    "conv_in.weight": (8, 3, 3, 2), "conv_in.bias": (8,), "blocks.0.conv1.weight": (12, 3, 3, 8),
    "blocks.0.conv1.bias": (12,), "blocks.0.norm.weight": (12,), "blocks.0.proj.weight": (20, 12),
    "blocks.1.proj.weight": (6, 20), "class_embedding.weight": (4, 6), "conv_out.weight": (2, 3, 3, 6),
}  # fmt: skip
HIDDEN = ["blocks.0.conv1.weight", "blocks.0.proj.weight", "blocks.1.proj.weight"]
SETTINGS = {"betas": (0.9, 0.99), "weight_decay": 0.1}
LR, STEPS = 0.02, 20


def named(backend):
    return [(name, Parameter(draw(*shape, seed=i), backend)) for i, (name, shape) in enumerate(SHAPES.items())]


def gradient(step, i):
    """Away from zero, as in test_optim.py."""
    return draw(*list(SHAPES.values())[i], offset=1.0, scale=0.3, seed=100 * step + i)


def torch_run(dtype):
    """20 steps of torch's Muon on the hidden weights as matrices, and of its AdamW on the others."""
    leaves = {
        name: torch.tensor(draw(*shape, seed=i).reshape((shape[0], -1) if name in HIDDEN else shape), dtype=dtype)
        for i, (name, shape) in enumerate(SHAPES.items())
    }
    muon = torch.optim.Muon(
        [leaves[name] for name in HIDDEN], LR, SETTINGS["weight_decay"], 0.95, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW([leaf for name, leaf in leaves.items() if name not in HIDDEN], LR, **SETTINGS)
    for step in range(STEPS):
        for i, leaf in enumerate(leaves.values()):
            leaf.grad = torch.tensor(gradient(step, i).reshape(leaf.shape), dtype=dtype)
        torch.nn.utils.clip_grad_norm_(leaves.values(), 1.0)
        with patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):  # else it orthogonalises in bfloat16
            muon.step()
        adamw.step()
    return [leaf.numpy().reshape(shape) for leaf, shape in zip(leaves.values(), SHAPES.values(), strict=True)]


def test_20_steps_equal_torch(backend):
    """Error against float64 at most twice that of torch's float32, or that of a product."""
    parameters = named(backend)
    optimizer = Muon(parameters, LR, **SETTINGS)
    for step in range(STEPS):
        optimizer.zero_grad()
        for i, (_, p) in enumerate(parameters):
            p.grad += backend.asarray(gradient(step, i))
        optimizer.step()
    for (name, p), a, b in zip(parameters, torch_run(torch.float64), torch_run(torch.float32), strict=True):
        assert rms(p.numpy() - a) <= max(2 * rms(b - a), CONV_FLOOR * rms(a)), name


def test_hidden_weights():
    """Those of convolutions and linear layers between the first and the last."""
    config = UNetConfig(
        block_out_channels=(8, 16), down_block_types=("DownBlock2D", "AttnDownBlock2D"), norm_num_groups=4,
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), layers_per_block=1, num_class_embeds=3,
    )  # fmt: skip
    parameters = list(UNet(config, None, "numpy").named_parameters())
    hidden = {name for name, p in parameters if is_hidden(name, p)}
    others = [name for name, p in parameters if name not in hidden and name.endswith("weight") and "norm" not in name]
    assert others == ["conv_in.weight", "class_embedding.weight", "conv_out.weight"]
    assert {"down_blocks.0.resnets.0.conv1.weight", "mid_block.attentions.0.to_out.0.weight"} <= hidden
    assert all(name.endswith("weight") and "norm" not in name for name in hidden)
    points = MLP(MLPConfig(hidden_size=8, num_layers=2, num_class_embeds=3), None, "numpy")
    layers = [name.removesuffix(".weight") for name, p in points.named_parameters() if is_hidden(name, p)]
    assert layers == ["time_embedding.linear_1", "time_embedding.linear_2", "layers.0", "layers.1"]


def test_other_parameters_are_adamws_bit_for_bit(backend):
    parameters, others = named(backend), named(backend)
    muon, adamw = Muon(parameters, LR, ema=0.9, **SETTINGS), AdamW([p for _, p in others], LR, ema=0.9, **SETTINGS)
    for step in range(3):
        for optimizer in (muon, adamw):
            optimizer.g[...] = backend.asarray(draw(len(muon.p), seed=step))
            optimizer.step()
    for (name, p), (_, other), v in zip(parameters, others, muon.split(muon.v), strict=True):
        assert np.array_equal(p.numpy(), other.numpy()) == (name not in HIDDEN), name
        assert backend.to_numpy(v).any() == (name not in HIDDEN)


def test_averages(backend):
    """Those of the loop, of the first, which the kernels compute, and of a further one."""
    optimizer = Muon(named(backend), LR, ema=[0.6, 0.3])
    emas = [backend.to_numpy(optimizer.p).astype(np.float64)] * 2
    for step in range(1, STEPS + 1):
        optimizer.g[...] = backend.asarray(draw(len(emas[0]), seed=step))
        optimizer.step()
        decays = [min(decay, (1 + step) / (10 + step)) for decay in (0.6, 0.3)]
        emas = [d * ema + (1 - d) * backend.to_numpy(optimizer.p) for d, ema in zip(decays, emas, strict=True)]
    for got, want in zip(optimizer.emas, emas, strict=True):
        assert rms(backend.to_numpy(got) - want) <= STEPS * 2**-24 * rms(want)  # one rounding per step


def test_an_update_has_the_size_of_adamws(backend):
    """0.2 of the learning rate in root mean square; the singular values are between 0.7 and 1.2."""
    optimizer = Muon([("layer.weight", p := Parameter(np.zeros((24, 3, 3, 8), np.float32), backend))], LR)
    optimizer.g[...] = backend.asarray(draw(len(optimizer.p)))
    optimizer.step()
    assert 0.7 * 0.2 * LR < rms(p.numpy()) < 1.2 * 0.2 * LR


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_skipped(backend, value):
    optimizer = Muon(named(backend), LR, ema=[0.9, 0.5])
    optimizer.g[...] = 1
    optimizer.step()
    before = [backend.to_numpy(a).copy() for a in (optimizer.p, optimizer.m, optimizer.v, *optimizer.emas)]
    optimizer.g[3] = value
    optimizer.step()
    assert (optimizer.step_count, optimizer.skipped) == (2, 1)
    for a, b in zip((optimizer.p, optimizer.m, optimizer.v, *optimizer.emas), before, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(a), b)
