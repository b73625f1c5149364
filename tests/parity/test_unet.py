"""The U-Net against diffusers' UNet2DModel: keys, output, and every gradient."""

from functools import cache

import numpy as np
import pytest
import torch
from against_torch import draw, nchw, nhwc, rms, torch_layout
from diffusers import UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding
from torch.func import functional_call

from minidiff.engine.tensor import Tensor
from minidiff.models.config import UNetConfig, config_to_dict, default_config
from minidiff.models.unet import UNet, timestep_embedding


def config(*blocks, **settings):
    """The down blocks, by the capital letter A where there is attention; the up blocks mirror them."""
    down = tuple("AttnDownBlock2D" if kind == "A" else "DownBlock2D" for kind in blocks)
    up = tuple("AttnUpBlock2D" if kind == "A" else "UpBlock2D" for kind in reversed(blocks))
    return UNetConfig(down_block_types=down, up_block_types=up, **settings)


# The configuration, and the shape (N, H, W) of the pictures.
CONFIGS = {
    "CIFAR-10, narrow": (
        config(
            "D", "A", "D", "D", block_out_channels=(16, 32, 32, 32), attention_head_dim=None, downsample_padding=0,
            flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6, norm_num_groups=8, sample_size=32,
        ),
        (2, 32, 32),
    ),
    "default": (default_config((16, 16, 3)), (3, 16, 16)),
    "heads and labels": (
        config("D", "A", block_out_channels=(16, 32), attention_head_dim=8, norm_num_groups=4, num_class_embeds=11),
        (3, 8, 8),
    ),
    "grey, not square": (
        config(
            "D", "D", "A", block_out_channels=(8, 12, 20), in_channels=1, out_channels=1, norm_num_groups=4,
            layers_per_block=1, attention_head_dim=5, sample_size=(8, 16),
        ),
        (2, 8, 16),
    ),
    "three layers, no attention": (
        config(
            "D", "D", block_out_channels=(15, 30), layers_per_block=3, norm_num_groups=5, add_attention=False,
            downsample_padding=0, out_channels=6,
        ),
        (2, 10, 6),
    ),
    "one level, attention everywhere": (
        config("A", block_out_channels=(24,), attention_head_dim=None, norm_num_groups=3, freq_shift=1),
        (1, 5, 7),
    ),
}  # fmt: skip


@cache
def inputs(name):
    """x_t, t, cond, dy, and weights of order one in every part, so that every gradient is large enough to compare."""
    cfg, (N, H, W) = CONFIGS[name]
    rng = np.random.default_rng(0)
    state = UNet(cfg, rng, "numpy").state_dict()
    state = {key: a + 0.1 * draw(*a.shape, seed=i) for i, (key, a) in enumerate(state.items())}
    t = rng.integers(0, 1000, N)
    cond = None if cfg.num_class_embeds is None else rng.integers(0, cfg.num_class_embeds, N)
    return draw(N, H, W, cfg.in_channels), t, cond, draw(N, H, W, cfg.out_channels, seed=1), state


def ours(name, backend):
    cfg, _ = CONFIGS[name]
    x_t, t, cond, dy, state = inputs(name)
    unet = UNet(cfg, np.random.default_rng(1), backend.name)
    unet.load_state_dict(state)
    x = Tensor(x_t, backend, requires_grad=True)
    y = unet(x, t, cond)
    y.backward(dy)
    gradients = {key: backend.to_numpy(p.grad) for key, p in unet.named_parameters()}
    return y.numpy(), backend.to_numpy(x.grad), gradients


def diffusers_net(name, dtype):
    cfg, _ = CONFIGS[name]
    state = torch_layout({key: torch.tensor(a) for key, a in inputs(name)[-1].items()})
    net = UNet2DModel.from_config(config_to_dict(cfg))
    net.load_state_dict(state)
    return net.to(dtype, memory_format=torch.channels_last)


@cache
def theirs(name, dtype):
    """The same of diffusers. Both precisions get our sinusoids: diffusers' are off by more than all the rest."""
    cfg, _ = CONFIGS[name]
    x_t, t, cond, dy, _ = inputs(name)
    net = diffusers_net(name, dtype)
    sinusoids = timestep_embedding(t, cfg.block_out_channels[0], cfg.flip_sin_to_cos, cfg.freq_shift)
    net.time_proj.forward = lambda t: torch.tensor(sinusoids, dtype=dtype)
    x = torch.tensor(x_t, dtype=dtype, requires_grad=True)
    labels = None if cond is None else torch.tensor(cond)
    y = nhwc(net(nchw(x), torch.tensor(t), class_labels=labels).sample)
    y.backward(torch.tensor(dy, dtype=dtype))
    gradients = {key: p.grad.numpy() for key, p in net.named_parameters()}
    gradients = {key: np.moveaxis(a, 1, -1) if a.ndim == 4 else a for key, a in gradients.items()}
    return y.detach().numpy(), x.grad.numpy(), gradients
