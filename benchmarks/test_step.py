"""A whole training step: forward, backward, clipping, AdamW, moving average; against the fastest float32 PyTorch.

Run it by `make bench`. The rival is diffusers' network of the same configuration in eager mode, channels_last,
with fused AdamW, on as many threads.
"""

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from rival import in_turn

import minidiff as md
from minidiff.models.config import config_to_dict
from minidiff.runs import machine


def ours(config, x_t, t, eps):
    unet = md.UNet(config, np.random.default_rng(0))
    optimizer = md.AdamW(unet.parameters(), 1e-4, clip=1.0, ema=0.999)
    schedule = md.cosine_schedule()

    def step():
        optimizer.zero_grad()
        md.training_loss(unet, schedule, x_t, t, eps).backward()
        optimizer.step()

    return step


def theirs(config, x_t, t, eps):
    values = {key: value for key, value in config_to_dict(config).items() if not key.startswith("_")}
    unet = UNet2DModel(**values).to(memory_format=torch.channels_last)
    parameters = list(unet.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, 1e-4, fused=True)
    x_t, eps = (torch.from_numpy(a).permute(0, 3, 1, 2) for a in (x_t, eps))  # NHWC in memory: channels_last
    t = torch.from_numpy(t)

    def step():
        optimizer.zero_grad()
        (unet(x_t, t).sample - eps).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1e-3)

    return step


@pytest.mark.parametrize(("width", "batch"), [(32, 32), (64, 32)], ids=["demo's net", "twice as wide"])
def test_training_step(benchmark, width, batch):
    threads = machine.use_threads(None, "numba")
    torch.set_num_threads(threads)
    config, rng = md.default_config((32, 32, 3), width), np.random.default_rng(0)
    x_t, eps = (rng.standard_normal((batch, 32, 32, 3), dtype=np.float32) for _ in range(2))
    t = rng.integers(0, 1000, batch)
    in_turn(benchmark, ours(config, x_t, t, eps), theirs(config, x_t, t, eps), rounds=10)
